// Brings a file that was chosen, or dropped on its place, to the folder of the page, and tells the page where it is.

export function bring(id) {
  const place = document.getElementById(id);
  if (!place) {
    setTimeout(() => bring(id), 50);
    return;
  }
  const input = place.querySelector("input");
  const said = place.querySelector("output");
  const send = async (files) => {
    for (const file of files) {
      said.textContent = `${file.name} ...`;
      try {
        const answer = await fetch(`/skyseg/files?name=${encodeURIComponent(file.name)}`, {
          method: "POST", body: file, headers: { "X-Skyseg": "1" },
        });
        const told = await answer.json();
        said.textContent = answer.ok ? `${file.name} is here` : told.detail;
        if (answer.ok) window.emitEvent("skyseg-brought", { place: id, path: told.path });
      } catch (error) {
        said.textContent = `${file.name} could not be brought: ${error.message}`;
      }
    }
  };
  input.addEventListener("change", () => send(input.files));
  place.addEventListener("dragover", (event) => event.preventDefault());
  place.addEventListener("drop", (event) => {
    event.preventDefault();
    send(event.dataTransfer.files);
  });
}

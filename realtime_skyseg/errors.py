"""Every exception the product raises, in one tree.

    SkysegError                 exit status 1
    ├── SettingsError           2  a wrong key, value, path or option
    │   └── MissingExtraError   2  a package that an optional extra installs is absent
    ├── CameraError             1  the camera broke off
    │   └── RecordingError      1  a recording is empty, truncated, or changes its frame size
    │       └── RecordingUnusableError 2  not even its first frame can be read: nothing was recorded
    ├── FieldError              1  the supply of the magnet refuses, is gone, or reads back something else
    ├── FrameError              1  an image that cannot be segmented
    ├── ModelError              2  a model file is broken or of another kind, or no engine can run it here
    │   └── ParityError         1  an engine disagrees with torch float32
    ├── RunFileError            1  a run file cannot be written or read
    │   ├── RunFileUnusableError 2 a run file that was named is none, is damaged, or lacks what is asked of it
    │   └── DiskFullError       1  no frame fits any more; what is open can still be finished
    ├── StreamError             1  the stream cannot be opened, or a message is malformed
    ├── ControlError            1  a request to the control socket is malformed or refused, or was not answered
    └── ConservationError       1  the counters of a run do not balance

A message is one sentence that names the key or file, the value, and what is allowed.
"""


class SkysegError(Exception):
    """Base of all errors of this package; `exit_status` is what the command line returns for it."""

    exit_status = 1


class SettingsError(SkysegError):
    """The settings or the command are wrong; nothing was recorded."""

    exit_status = 2


class MissingExtraError(SettingsError):
    """An optional package is not installed; the message names the pip command."""


class CameraError(SkysegError):
    """The camera stopped delivering frames because of a fault."""


class RecordingError(CameraError):
    """A recording cannot be replayed (any further); the message names the file and the frame."""


class RecordingUnusableError(RecordingError):
    """Not even the first frame of a recording can be read; nothing was recorded."""

    exit_status = 2


class FieldError(SkysegError):
    """The magnet's supply refuses a value, is gone, or reads back something else than was set."""


class FrameError(SkysegError):
    """An image has a shape or dtype that cannot be segmented."""


class ModelError(SkysegError):
    """A model cannot be loaded or run."""

    exit_status = 2


class ParityError(ModelError):
    """An engine's masks agree too little with those of torch float32."""

    exit_status = 1


class RunFileError(SkysegError):
    """A run file cannot be written or read."""


class RunFileUnusableError(RunFileError):
    """A run file that was named is none, is damaged, or lacks what is asked of it."""

    exit_status = 2


class DiskFullError(RunFileError):
    """The disk of a run file is nearly full: no frame is taken any more, so that the file can be finished."""


class StreamError(SkysegError):
    """The stream cannot be bound or joined, or a message does not follow `skyseg-1`."""


class ControlError(SkysegError):
    """A request to a running service is malformed, refused, or was not answered."""


class ConservationError(SkysegError):
    """received = analysed + not analysed, or received = written + not written, does not hold."""

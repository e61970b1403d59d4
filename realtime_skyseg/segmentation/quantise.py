"""A model's network in 8 bits, by post-training quantisation with NNCF."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from realtime_skyseg.errors import MissingExtraError, SettingsError
from realtime_skyseg.records import Image, Mask
from realtime_skyseg.segmentation.model import Model
from realtime_skyseg.segmentation.openvino_engine import graph_of
from realtime_skyseg.segmentation.parity import MIN_AGREEMENT_INT8, check_parity
from realtime_skyseg.segmentation.scaling import scale_mirrored


def quantise(model: Model, images: Sequence[Image]) -> float:
    """Write `model.quantised` and its .bin, which the OpenVINO engine takes from then on.

    Each layer's activations get the whole range that they have on the images (Krishnamoorthi, arXiv:1806.08342, section
    3): with ranges averaged over images, as is usual, dirt was cut off and counted. The convolutions at full
    resolution, those of the first level, are left as they are, and so are the biases.

    Args:
        model: the model.
        images: (height, width) each, as a camera gives them; of the training set, never of what accuracy is measured
            on.

    Returns:
        Share of pixels on which it agrees with torch float32 on synthetic images.

    Raises:
        MissingExtraError: nncf is not installed.
        ParityError: the share is too small; nothing is written.
        SettingsError: there are no images, or the file cannot be written.
    """
    try:
        import nncf
        import openvino
        from nncf.quantization.range_estimator import RangeEstimatorParametersSet
    except ImportError as error:
        raise MissingExtraError(
            f"quantisation needs the package nncf: pip install 'realtime_skyseg[quantise]' ({error})"
        ) from error
    if not images:
        raise SettingsError(
            "images: there are none to calibrate on; allowed: 10 or more that look as the camera's will"
        )
    scaled = []
    for image in images:
        scaled.append(np.empty((1, 1, *model.shape.padded(image.shape)), np.float32))
        scale_mirrored(image, scaled[-1][0, 0], model.scaling)
    original = graph_of(model, None)
    height, width = shape = model.shape.padded((512, 672))
    fixed = original.clone()
    fixed.reshape([1, 1, height, width])
    finest = [
        op.get_friendly_name()
        for op in fixed.get_ordered_ops()
        if op.get_type_name() == "Convolution" and op.get_output_shape(0)[2] * model.shape.unshuffle == height
    ]
    graph = nncf.quantize(
        original,
        nncf.Dataset(scaled),
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=finest),
        subset_size=len(scaled),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=True, activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        ),
    )
    graph.set_rt_info(model.sha256, ["skyseg", "model_sha256"])
    fixed = graph.clone()
    fixed.reshape([1, 1, height, width])
    request = openvino.Core().compile_model(fixed, "CPU").create_infer_request()

    def found(image: NDArray[np.float32]) -> Mask:
        mask: Mask = request.infer({0: image[None, None]})[0][0, 0].copy()
        return mask

    agreement = check_parity(model, "openvino", found, shape, MIN_AGREEMENT_INT8)
    try:
        openvino.save_model(graph, model.quantised, compress_to_fp16=False)
    except RuntimeError as error:
        raise SettingsError(f"'{model.quantised}' cannot be written: {error}") from error
    return agreement

"""The networks that `benchmarks/zoo.py` prunes: whole libraries of them, with random weights and small inputs.

A suite maps names to functions that build a `Case`. Inputs are the smallest that a network accepts: what is measured
is how the analysis follows a network and whether its cut is exact, and neither depends on the size of an image.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network, inputs that fit it, and how it is called and its output read where that is not the usual way."""

    model: nn.Module
    inputs: Any
    forward_fn: Callable[[nn.Module, Any], Any] | None = None
    output_transform: Callable[[Any], Any] | None = None


Entry = Callable[[], Case]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere: what is 0, 1 or 1e-6 in a fresh network (norms, biases, scales) hides wrong cuts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point():
                continue
            if parameter.dim() < 2:
                parameter.uniform_(0.25, 1.25, generator=generator)
            elif parameter.numel():
                parameter.normal_(std=max(1, parameter[0].numel()) ** -0.5, generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.3, generator=generator)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


# ------------------------------------------------------------------------------------------------------ torchvision

_TORCHVISION_SIZE = 64
# Those that need more, are quicker with less, or take their size as an argument.
_TORCHVISION_SIZES = {
    "inception_v3": 299,  # the auxiliary head runs at no smaller size
    "maxvit_t": 224,  # its windows must fit each stage
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"), 32),
    **dict.fromkeys(("vit_b_16", "vit_l_16"), 32),
    "vit_h_14": 28,
}
_FEW_DETECTIONS = {"score_thresh": 0.0, "topk_candidates": 20, "detections_per_img": 6}


def _region_heads(model: Any, images: Any) -> list[Tensor]:
    """The raw outputs of an R-CNN for two fixed regions: which ones it would choose itself depends on every value."""
    batch, _ = model.transform(list(images))
    features = model.backbone(batch.tensors)
    objectness, boxes = model.rpn.head(list(features.values()))
    regions = [torch.tensor([[4.0, 8.0, 60.0, 70.0], [10.0, 20.0, 90.0, 80.0]]) for _ in images]
    heads, outputs = model.roi_heads, [*objectness, *boxes]
    regions = [region.to(batch.tensors) for region in regions]
    outputs += heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, batch.image_sizes)))
    for kind in ("mask", "keypoint"):
        if getattr(heads, f"has_{kind}")():
            pooled = getattr(heads, f"{kind}_roi_pool")(features, regions, batch.image_sizes)
            outputs.append(getattr(heads, f"{kind}_predictor")(getattr(heads, f"{kind}_head")(pooled)))
    return outputs


def _small_mvit(name: str, frames: int, size: int) -> nn.Module:
    """A video transformer for small inputs, which its builder has no argument for."""
    from torchvision.models.video import mvit

    build: Any = mvit.MViT
    sizes = {"spatial_size": (size, size), "temporal_size": frames}
    with patch.object(mvit, "MViT", lambda **options: build(**{**options, **sizes})):
        return getattr(mvit, name)(weights=None)


def _torchvision(name: str) -> Case:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    size = _TORCHVISION_SIZES.get(name, _TORCHVISION_SIZE)
    inputs: Any = torch.randn(1, 3, size, size)
    module = models.get_model_builder(name).__module__
    if name.startswith("vit_"):
        options["image_size"] = size
    elif name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    elif ".segmentation" in module:
        options["weights_backbone"] = None
    elif ".detection" in module:
        options["weights_backbone"] = None
        options |= {} if name.startswith("ssd") else {"min_size": 96, "max_size": 128}
        options |= {} if "rcnn" in name else _FEW_DETECTIONS
        inputs = [torch.rand(3, 96, 96)]
    elif name.startswith("raft"):
        inputs = {"image1": torch.rand(1, 3, 128, 128), "image2": torch.rand(1, 3, 128, 128), "num_flow_updates": 2}
    elif ".video" in module:
        frames, size = (14, 224) if name == "s3d" else (4, 64)
        inputs = torch.randn(1, 3, frames, size, size)
        if name.startswith("mvit"):
            return Case(randomise(_small_mvit(name, frames, size)), inputs)
    forward_fn = _region_heads if "rcnn" in name else None
    return Case(randomise(models.get_model(name, **options)), inputs, forward_fn)


def torchvision_entries() -> dict[str, Entry]:
    """Every classification, segmentation, detection, video and optical flow network of torchvision."""
    from torchvision import models

    return {name: partial(_torchvision, name) for name in models.list_models() if not name.startswith("quantized_")}


# ------------------------------------------------------------------------------------------------------------- timm


# The smallest network of every family, and a few that are built another way than the rest of theirs.
_TIMM = """
caformer_s18 convformer_s18 convmixer_768_32 convnext_atto convnext_zepto_rms convnextv2_atto cpubone_nano
cs3darknet_focus_s cs3se_edgenet_x csatv2 cspdarknet53 cspnext_tiny cspresnet50 cspresnext50 darknet17 darknetaa53
davit_tiny densenet121 densenetblur121d dla46x_c dla60_res2net dm_nfnet_f0 dpn48b dpn68b eca_nfnet_l0 eca_vovnet39b
ecaresnet26t ecaresnetlight ecaresnext26t_32x4d edgenext_small edgenext_xx_small efficientnet_b0_g16_evos
efficientnet_b0_gn efficientnet_lite0 efficientvim_m1 efficientvit_b0 efficientvit_l1 ese_vovnet19b_slim_dw
fasternet_t0 fastvit_mci0 fastvit_sa12 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_lrf focalnet_tiny_srf
gc_efficientnetv2_rw_t ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_b hgnet_tiny hgnetv2_b0 hieradet_small
hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnet_035 lcnetv2_small
legacy_seresnet18 legacy_xception lowformer_b0 mambaout_femto mixnet_s mnasnet_small mobilenet_edgetpu_100
mobilenetv2_035 mobilenetv3_small_050 mobilenetv4_conv_small mobilenetv4_hybrid_medium mobilenetv5_300m nasnetalarge
nextvit_small nf_ecaresnet26 nf_regnet_b0 nf_resnet26 nfnet_l0 pnasnet5large poolformer_s12 poolformerv2_s12 pvt_v2_b0
pvt_v2_b2_li rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnety_040_sgn regnetz_005 repghostnet_050
res2net50_26w_4s res2next50 resnest14d resnet10t resnet50_gn resnetaa34d resnetblur18 resnetrs50 resnetv2_18
resnetv2_50d_evos resnetv2_50d_frn resnetv2_50d_gn resnetv2_50x1_bit resnext50_32x4d rexnet_100 rexnetr_100
sam2_hiera_tiny sedarknet21 selecsls42 selecsls60b semnasnet_050 senet154 seresnet18 seresnetaa50d seresnext26t_32x4d
seresnextaa101d_32x8d shvit_s1 skresnet18 skresnet34 skresnext50_32x4d spnasnet_100 starnet_s050 test_convnext
test_convnext2 test_convnext3 test_efficientnet test_efficientnet_evos test_efficientnet_gn test_efficientnet_ln
test_mambaout test_nfnet test_resnet tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e tresnet_m tresnet_v2_l vgg11
vovnet39a wide_resnet50_2 xception41 xception41p
"""
# Those that are built for one size of image and take it as an argument.
_TIMM_SIZED = """
aimv2_large_patch14_224 bat_resnext26ts beit3_base_patch16_224 beit_base_patch16_224 beitv2_base_patch16_224
botnet26t_256 cait_xxs24_224 cait_xxs36_224 coat_lite_tiny coat_tiny coatnet_nano_cc_224 coatnet_pico_rw_224
coatnext_nano_rw_224 convit_tiny crossvit_9_dagger_240 crossvit_tiny_240 deepseek_vit_412m deit3_small_patch16_224
deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 eca_botnext26ts_256 eca_resnext26ts efficientformer_l1
efficientformerv2_s0 efficientvit_m0 eva02_tiny_patch14_224 eva_large_patch14_196 flexivit_small gcresnet33ts
gcresnext26ts gcvit_xxtiny gemma4_vit_167m gernet_s gmixer_12_224 gmlp_ti16_224 halo2botnet50ts_256 halonet_h1
haloregnetz_b hiera_small_abswin_256 hiera_tiny_224 lambda_resnet26rpt_256 lambda_resnet26t lamhalobotnet50ts_256
levit_128s levit_conv_128s maxvit_pico_rw_256 maxvit_rmlp_pico_rw_256 maxxvit_rmlp_nano_rw_256 maxxvitv2_nano_rw_256
mixer_s16_224 mixer_s32_224 mobileone_s1 mobilevit_xxs mobilevitv2_050 mobilevitv2_075 mvitv2_small_cls mvitv2_tiny
naflexvit_so150m2_patch16_reg1_gap nest_tiny pit_ti_224 pit_ti_distilled_224 qwen3_vit_88m regnetz_b16
regnetz_b16_evos repvgg_a0 repvgg_d2se repvit_m1 resmlp_12_224 resnet32ts resnet50_clip resnet50_mlp resnet51q
resnext26ts samvit_base_patch16_224 sebotnet33ts_256 sehalonet33ts sequencer2d_s seresnet33ts seresnext26ts
swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_tiny_window8_256 test_byobnet
test_coatnet test_maxvit test_vit test_vit2 test_vit3 test_vit4 test_vit_relpos tnt_s_legacy_patch16_224
twins_pcpvt_small twins_svt_small visformer_tiny vit_base_mci_224 vit_medium_patch16_rope_reg1_gap_256
vit_relpos_small_patch16_224 vit_relpos_small_patch16_rpn_224 vit_small_patch16_rope_224
vit_small_patch16_rope_mixed_224 vit_small_resnet26d_224 vit_so150m_patch16_reg4_map_256 vit_srelpos_small_patch16_224
vit_tiny_patch16_224 vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vit_wee_patch16_reg1_gap_256 vitamin_small_224
volo_d1_224 xcit_nano_12_p16_224 xcit_nano_12_p8_224
"""
_TIMM_SIZE = 64
# What their strides, windows or patches need.
_TIMM_SIZES = {
    **dict.fromkeys(("aimv2_large_patch14_224", "eva02_tiny_patch14_224", "eva_large_patch14_196"), 56),
    **dict.fromkeys(("inception_resnet_v2", "inception_v3", "inception_v4"), 96),
    "deepseek_vit_412m": 112,
    **dict.fromkeys(("halo2botnet50ts_256", "lamhalobotnet50ts_256"), 128),
    **dict.fromkeys(("efficientformer_l1", "haloregnetz_b"), 224),
    **dict.fromkeys(("crossvit_9_dagger_240", "crossvit_tiny_240"), 240),
    **dict.fromkeys(("bat_resnext26ts", "halonet_h1", "sehalonet33ts"), 256),
}


def _timm(name: str, sized: bool) -> Case:
    size = _TIMM_SIZES.get(name, _TIMM_SIZE)
    options: dict[str, Any] = {"img_size": size} if sized else {}
    model = import_module("timm").create_model(name, pretrained=False, **options)
    return Case(randomise(model), torch.randn(1, 3, size, size))


def timm_entries() -> dict[str, Entry]:
    """The smallest network of every family of timm, and some more."""
    import_module("timm")  # once, before the networks' processes part
    return {
        name: partial(_timm, name, sized)
        for sized, names in ((False, _TIMM), (True, _TIMM_SIZED))
        for name in names.split()
    }


# ------------------------------------------------------------------------------------------------------------- toys


def toy_entries() -> dict[str, Entry]:
    """The small hard cases of the tests."""
    folder = str(Path(__file__).parent.parent / "tests")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    cases = import_module("nets").CASES
    return {name: partial(_toy, case) for name, case in cases.items()}


def _toy(case: Any) -> Case:
    return Case(case.make(), case.inputs(2))


def transformers_entries() -> dict[str, Entry]:
    """Tiny networks of transformers, one or more of each model type."""
    return import_module("benchmarks.transformers_suite").ENTRIES


SUITES: dict[str, Callable[[], dict[str, Entry]]] = {
    "torchvision": torchvision_entries,
    "timm": timm_entries,
    "transformers": transformers_entries,
    "toys": toy_entries,
}


def stack_inputs(inputs: Any, batch: int) -> Any:
    """The inputs of a case for another batch size: every tensor's first index, ``batch`` times over."""
    from cleanai.inputs import map_tensors

    def repeat(tensor: Tensor) -> Tensor:
        return tensor if not tensor.dim() else tensor[:1].repeat_interleave(batch, 0)

    return map_tensors(repeat, inputs)

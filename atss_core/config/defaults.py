"""All configuration keys with default, unit and meaning.

Names and defaults equal those of the published implementation, so its YAML files and command lines load
unchanged. Keys that it does not have are marked "(new)". Sizes are in pixels unless a comment says otherwise.
``docs/config.md`` is generated from these comments.
"""

from yacs.config import CfgNode as Node

from atss_core.config.values import check_node

_DEFAULTS = {
    "MODEL": {
        # Both must be true: the detector is a dense head ("RPN only") with ATSS. The flags below them belong
        # to components that this project does not have; they load as False, and True is an error.
        "ATSS_ON": False,
        "RPN_ONLY": False,
        "MASK_ON": False,
        "KEYPOINT_ON": False,
        "FCOS_ON": False,
        "RETINANET_ON": False,
        "CLS_AGNOSTIC_BBOX_REG": False,
        # Only this value is accepted.
        "META_ARCHITECTURE": "GeneralizedRCNN",
        # "auto" selects CUDA, else MPS, else the CPU; or a device: "cpu", "cuda", "cuda:1", "mps".
        "DEVICE": "auto",
        # Initial weights: a detector (.pth or .safetensors), or an ImageNet backbone: catalog://NAME or a
        # .pkl file (Caffe2), torchvision://resnet50, timm://resnet50.a1_in1k. Files may be URLs. Empty starts
        # from random weights. See INSTALL.md.
        "WEIGHT": "",
        # (new) Load the weights of a detector that fit and initialize the others, for example after a change
        # of the number of classes.
        "WEIGHT_PARTIAL": False,
        # (new) Channels-last memory format of weights and activations; suits tensor cores.
        "CHANNELS_LAST": False,
        # (new) Compile backbone, FPN and head with torch.compile; the first iterations then take minutes.
        "COMPILE": False,
        # Convert the trainable batch norms to synchronized ones when several processes train.
        "USE_SYNCBN": False,
        "BACKBONE": {
            # each followed by "-FPN-RETINANET", or your own
            # (docs/extending.md).
            "CONV_BODY": "R-50-C4",
            # Number of frozen stages, counted from the stem: 0 none, 1 stem, 2 stem and layer1, ...
            "FREEZE_CONV_BODY_AT": 2,
            # GroupNorm in the backbone, regardless of TRANS_FUNC and STEM_FUNC.
            "USE_GN": False,
        },
        # (new) The network between backbone and head: FPN, or your own (docs/extending.md).
        "NECK": {"NAME": "FPN"},
        # (new) ATSSHead, or your own (docs/extending.md).
        "HEAD": {"NAME": "ATSSHead"},
        # (new) ATSSLoss, or your own (docs/extending.md).
        "LOSS": {"NAME": "ATSSLoss"},
        # GroupNorm, and a ReLU, after each convolution of the FPN.
        "FPN": {"USE_GN": False, "USE_RELU": False},
        # GroupNorm of backbone and FPN: NUM_GROUPS, or DIM_PER_GP channels per group with NUM_GROUPS -1.
        "GROUP_NORM": {"DIM_PER_GP": -1, "NUM_GROUPS": 32, "EPSILON": 1e-5},
        "RESNETS": {
            # Groups of the 3x3 convolution and channels per group in layer1 (1x64 ResNet, 32x8 and 64x4
            # ResNeXt). A basic block is WIDTH_PER_GROUP wide.
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            # Put the stride of a bottleneck in its first 1x1 (Caffe2 and MSRA weights) instead of its 3x3
            # (torchvision).
            "STRIDE_IN_1X1": True,
            # "...WithFixedBatchNorm", "...WithBatchNorm" (new) or "...WithGN".
            "TRANS_FUNC": "BottleneckWithFixedBatchNorm",
            "STEM_FUNC": "StemWithFixedBatchNorm",
            # Belongs to a component that this project does not have: only 1 is accepted.
            "RES5_DILATION": 1,
            # Channels of every FPN level and of the head.
            "BACKBONE_OUT_CHANNELS": 256 * 4,
            # Output channels of layer1 of a bottleneck backbone; each later stage doubles them.
            "RES2_OUT_CHANNELS": 256,
            # Output channels of the stem.
            "STEM_OUT_CHANNELS": 64,
            # Deformable 3x3 convolutions in layer1 to layer4; modulated means DCNv2.
            "STAGE_WITH_DCN": (False, False, False, False),
            "WITH_MODULATED_DCN": False,
            "DEFORMABLE_GROUPS": 1,
        },
        "ATSS": {
            # Object classes plus one for the background: 81 for COCO. Where no file and no override sets it,
            # it follows from the dataset or the checkpoint.
            "NUM_CLASSES": 81,
            # Anchor side on each level, or a list of several.
            "ANCHOR_SIZES": (64, 128, 256, 512, 1024),
            # Height / width.
            "ASPECT_RATIOS": (1.0,),
            # Only these, the strides of P3 to P7.
            "ANCHOR_STRIDES": (8, 16, 32, 64, 128),
            # How far an anchor may extend beyond the image before it is marked as not visible; -1 disables
            # the mark. ATSS does not use the mark.
            "STRADDLE_THRESH": 0,
            # Scale i of n has side ANCHOR_SIZE * OCTAVE ** (i / n).
            "OCTAVE": 2.0,
            "SCALES_PER_OCTAVE": 1,
            # 3x3 convolutions in each tower of the head; the last is deformable if USE_DCN_IN_TOWER.
            "NUM_CONVS": 4,
            "USE_DCN_IN_TOWER": False,
            # (new) Normalization in the towers: GN (32 groups) or none.
            "TOWER_NORM": "GN",
            # (new) Predict the centerness: the score is the square root of class probability times
            # centerness, and the centerness target weights the box loss. If false, the score is the class
            # probability, and the box losses of all positives have the same weight.
            "USE_CENTERNESS": True,
            # (new) Multiply the box predictions of each level by a learned factor.
            "USE_SCALE": True,
            # Focal loss.
            "LOSS_ALPHA": 0.25,
            "LOSS_GAMMA": 2.0,
            # Label assignment: ATSS, SSC (FCOS), IoU (RetinaNet) or TOPK.
            "POSITIVE_TYPE": "ATSS",
            # Only for IoU: at least FG is positive, below BG is background, between them is ignored.
            "FG_IOU_THRESHOLD": 0.5,
            "BG_IOU_THRESHOLD": 0.4,
            # Only for ATSS (candidates per level) and TOPK (positives per object).
            "TOPK": 9,
            # (new) Keep only positives whose center is inside their box. SSC is defined by that and needs
            # True.
            "POSITIVES_IN_BOX": True,
            # (new) Only for ATSS: an object without a positive gets the candidate with the highest IoU that
            # no other object needs, even if the center of the candidate is outside the box.
            "AT_LEAST_ONE": False,
            # (new) Only for SSC: maximum distance of a positive from the center of the object, in strides,
            # horizontally and vertically. 0 disables it; the center sampling of FCOS, "ATSS lite" in the
            # paper, is 1.5.
            "CENTER_SAMPLING_RADIUS": 0.0,
            # BOX regresses deltas from an anchor box, POINT the distances from its center to the four sides.
            "REGRESSION_TYPE": "BOX",
            # (new) GIoU of the decoded boxes, or SmoothL1 of the encoded ones (RetinaNet); and the weight of
            # this loss. RetinaNet uses SmoothL1 with weight 1.
            "REG_LOSS_TYPE": "GIoU",
            "REG_LOSS_WEIGHT": 2.0,
            # Class probability that the head predicts everywhere at the start of training.
            "PRIOR_PROB": 0.01,
            # Detections: minimum class probability, IoU threshold of NMS, candidates per level before NMS.
            "INFERENCE_TH": 0.05,
            "NMS_TH": 0.6,
            "PRE_NMS_TOP_N": 1000,
        },
        # Compute P6 from C5 if true, else from P5.
        "RETINANET": {"USE_C5": True},
    },
    "INPUT": {
        # Short side in training: one of these at random, or any whole number in RANGE if that is set.
        "MIN_SIZE_TRAIN": (800,),
        "MIN_SIZE_RANGE_TRAIN": (-1, -1),
        # Maximum of the long side.
        "MAX_SIZE_TRAIN": 1333,
        # Short side in evaluation and inference.
        "MIN_SIZE_TEST": 800,
        # Maximum of the long side in evaluation and inference.
        "MAX_SIZE_TEST": 1333,
        # (new) Probability of flipping a training image; the published code has a fixed 0.5.
        "HORIZONTAL_FLIP_PROB_TRAIN": 0.5,
        # Pixel statistics, in the order and range that TO_BGR255 selects: BGR in 0..255 or RGB in 0..1.
        "PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
        "PIXEL_STD": [1.0, 1.0, 1.0],
        "TO_BGR255": True,
        # (new) Images with more pixels (width times height) are refused; RGB takes 3 bytes per pixel.
        "MAX_PIXELS": 200_000_000,
        # (new) Bit depth of grey images of more than 8 bits: 12 for a 12-bit camera that writes 16-bit files;
        # 0 for the bit depth of the file.
        "GREY_BITS": 0,
    },
    "DATASETS": {
        # Datasets, each a name from config/catalog.py or REGISTER, or (new) a dataset path:
        # "annotations.json@images" (COCO), "folder@split" (VOC, YOLO) or "data.yaml@split" (YOLO).
        "TRAIN": (),
        "TEST": (),
        # (new) Own names for dataset paths, which are relative to the current folder:
        # REGISTER: {cells_train: "cells/train.json@cells/images"}.
        "REGISTER": {},
        # (new) Root folder of the datasets in config/catalog.py.
        "DATA_DIR": "datasets",
    },
    "DATALOADER": {
        # Worker processes; 0 loads in the main process.
        "NUM_WORKERS": 4,
        # Pad images to sides that are multiples of this; 0 does not round them up.
        "SIZE_DIVISIBILITY": 0,
        # Group batches by shape: either wide (height < width) or tall and square images.
        "ASPECT_RATIO_GROUPING": True,
        # (new) Exclude images without any object from training; if False they are background. Images that
        # have only crowds or boxes without area are always excluded.
        "FILTER_EMPTY_ANNOTATIONS": True,
        # (new) Skip and count images that cannot be read, instead of stopping.
        "SKIP_CORRUPT": False,
    },
    "SOLVER": {
        # Iterations, and images per iteration over all processes.
        "MAX_ITER": 40000,
        "IMS_PER_BATCH": 16,
        # Learning rate after the warm-up.
        "BASE_LR": 0.001,
        # Factors of the learning rate for biases and for the offsets of deformable convolutions.
        "BIAS_LR_FACTOR": 2,
        "DCONV_OFFSETS_LR_FACTOR": 1.0,
        # SGD; biases have a separate weight decay.
        "MOMENTUM": 0.9,
        "WEIGHT_DECAY": 0.0005,
        "WEIGHT_DECAY_BIAS": 0,
        # The learning rate is multiplied by GAMMA at each of STEPS (iterations).
        "GAMMA": 0.1,
        "STEPS": (30000,),
        # Learning rate in the first WARMUP_ITERS: "constant" BASE_LR * FACTOR, or "linear" from there to
        # BASE_LR.
        "WARMUP_FACTOR": 1.0 / 3,
        "WARMUP_ITERS": 500,
        "WARMUP_METHOD": "linear",
        # (new) "step" is the published schedule; "cosine" decays to 0 at MAX_ITER (arXiv 1608.03983). Both
        # start with the warm-up.
        "SCHEDULE": "step",
        # (new) Batch size that BASE_LR was chosen for: the learning rate becomes
        # BASE_LR * IMS_PER_BATCH / LR_REFERENCE_BATCH. 0 uses BASE_LR unchanged.
        "LR_REFERENCE_BATCH": 0,
        # (new) Micro-batches that each process splits its share of a batch into, to save memory. The update
        # is that of the whole batch.
        "GRAD_ACCUM_STEPS": 1,
        # (new) Mixed precision in training: "bfloat16", "float16", empty for none. float16 needs a loss
        # scaler, which waits for the GPU in each iteration.
        "AMP": "",
        # (new) Maximum norm of all gradients together; 0 does not clip.
        "CLIP_GRAD_NORM": 0.0,
        # (new) Decay of EMA weights, which are evaluated instead of the trained ones; 0.9998 averages over
        # about 5,000 iterations, 0 disables them.
        "EMA_DECAY": 0.0,
        # Iterations between checkpoints, and (new) between log lines.
        "CHECKPOINT_PERIOD": 2500,
        "LOG_PERIOD": 20,
    },
    "TEST": {
        # [(task, metric, mean, std), ...], for example [("bbox", "AP", 0.393, 0.002)]. Results that differ
        # from the mean by more than SIGMA_TOL std are reported.
        "EXPECTED_RESULTS": [],
        "EXPECTED_RESULTS_SIGMA_TOL": 4,
        # Images per batch over all processes, at least one per process.
        "IMS_PER_BATCH": 8,
        # Maximum number of detections per image, those with the highest scores.
        "DETECTIONS_PER_IMG": 100,
        # (new) Iterations between evaluations during training, 0 for none. model_best.pth is the checkpoint
        # with the highest BEST_METRIC (AP, AP50, ...) on the first dataset of DATASETS.TEST.
        "EVAL_PERIOD": 0,
        "BEST_METRIC": "AP",
        # (new) Write OUTPUT_DIR/inference/<dataset>/report.html after the final evaluation on a dataset
        # with annotations; evaluations during training write none.
        "REPORT": True,
        # (new) Library that computes the metrics: "pycocotools", "faster_coco_eval" or "hotcoco". "auto"
        # selects the fastest that is installed; all give the same numbers (benchmarks/RESULTS.md).
        "COCO_EVAL": "auto",
        # Test-time augmentation: detect in several scales of an image, one after the other.
        "BBOX_AUG": {
            # Enable test-time augmentation.
            "ENABLED": False,
            # Short sides in addition to INPUT.MIN_SIZE_TEST. The maximum of the long side is MAX_SIZE, or
            # INPUT.MAX_SIZE_TEST for short sides below 800.
            "SCALES": (),
            "MAX_SIZE": 4000,
            # Add the flipped image: at INPUT.MIN_SIZE_TEST, and at each of SCALES.
            "H_FLIP": False,
            "SCALE_H_FLIP": False,
            # If true, each scale has its own NMS and keeps DETECTIONS_PER_IMG; MERGE_TYPE then merges the
            # detections of all scales, at most PRE_NMS_TOP_N per image: "vote" averages boxes with an IoU of
            # at least VOTE_TH, "soft-vote" also keeps the original boxes at lower scores, "nms" keeps the box
            # with the highest score. If false, one NMS over the candidates of all scales keeps
            # DETECTIONS_PER_IMG.
            "VOTE": False,
            "VOTE_TH": 0.66,
            "MERGE_TYPE": "vote",
            # With VOTE: for each of SCALES the (minimum, maximum) square root of the area of the objects to
            # keep, in pixels of that scale; empty for all.
            "SCALE_RANGES": (),
        },
    },
    # Folder of checkpoints, logs and results.
    "OUTPUT_DIR": ".",
    # (new) Seed of weight initialization, sample order and augmentation.
    "SEED": 0,
    # (new) Use only algorithms that give the same bits in every run, and refuse the others. The CPU needs no
    # switch for that.
    "DETERMINISTIC": False,
}


class Config(Node):
    """A configuration that checks its values when it is frozen, since a program may have changed them."""

    def freeze(self) -> None:
        """Check all values and make them immutable."""
        if "MODEL" in self and not self.is_frozen():  # not a section
            check_node(self, get_cfg(), source="the program")
        super().freeze()


def get_cfg() -> Config:
    """Return a fresh configuration with all defaults; two calls share nothing."""
    return Config(_DEFAULTS)


def checked(cfg: Node) -> Node:
    """Return a copy of a configuration, which may be a plain ``CfgNode``, with the values that loading gives.

    Raises:
        ValueError: if a key is missing or has an invalid value.
    """
    copy = cfg.clone()
    copy.defrost()
    check_node(copy, get_cfg(), source="the program")
    if cfg.is_frozen():
        Node.freeze(copy)
    return copy

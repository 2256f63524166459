"""Every configuration key with its default, unit and meaning.

Names and defaults are those of the published implementation, so that its YAML files and command lines load
unchanged; keys that it does not have are marked "(new)". Sizes are in pixels unless a line says otherwise.
"""

from yacs.config import CfgNode as Node

from atss_core.config.values import check_node


class Config(Node):
    """A configuration whose values are checked again after a program may have changed them."""

    def freeze(self) -> None:
        """Check all values and make them immutable."""
        if "MODEL" in self and not self.is_frozen():  # not a section
            check_node(self, get_cfg(), source="the program")
        super().freeze()


def checked(cfg: Node) -> Node:
    """Return a copy of a configuration, which may be a plain ``CfgNode``, with the values that loading gives.

    Raises:
        ValueError: if a key is missing, or has a value that it must not have.
    """
    copy = cfg.clone()
    copy.defrost()
    check_node(copy, get_cfg(), source="the program")
    if cfg.is_frozen():
        Node.freeze(copy)
    return copy


def get_cfg() -> Config:
    """Return a fresh configuration with all defaults; nothing is shared between two calls."""
    return Config(
        {
            "MODEL": _model(),
            "INPUT": _input(),
            "DATASETS": _datasets(),
            "DATALOADER": _dataloader(),
            "SOLVER": _solver(),
            "TEST": _test(),
            # Where checkpoints, logs and results are written.
            "OUTPUT_DIR": ".",
            # (new) Seed of weight initialisation, sample order and augmentation.
            "SEED": 0,
            # (new) Use only algorithms that give the same bits in every run, and refuse the others. The CPU
            # needs no switch for that.
            "DETERMINISTIC": False,
        }
    )


def _model() -> Node:
    return Node(
        {
            # Both must be true: the detector is a dense head ("RPN only") with ATSS. The flags below them
            # belong to parts that are not here; they load as False and are an error as True.
            "ATSS_ON": False,
            "RPN_ONLY": False,
            "MASK_ON": False,
            "KEYPOINT_ON": False,
            "FCOS_ON": False,
            "RETINANET_ON": False,
            "CLS_AGNOSTIC_BBOX_REG": False,
            # Only this value is accepted.
            "META_ARCHITECTURE": "GeneralizedRCNN",
            # "auto" takes CUDA, else MPS, else the CPU; or name one: "cpu", "cuda", "cuda:1", "mps".
            "DEVICE": "auto",
            # Weights to start from: a detector (.pth or .safetensors), or an ImageNet body: catalog://NAME
            # or a .pkl file (Caffe2), torchvision://resnet50, timm://resnet50.a1_in1k. Files may be URLs.
            # Empty starts from random weights. INSTALL.md tells more.
            "WEIGHT": "",
            # (new) Load what fits of a detector and leave the rest fresh: another number of classes, say.
            "WEIGHT_PARTIAL": False,
            # (new) Store weights with the channels last, which activations then follow; suits tensor cores.
            "CHANNELS_LAST": False,
            # (new) Compile backbone, FPN and head with torch.compile; the first iterations then take minutes.
            "COMPILE": False,
            # Turn the trainable batch norms into synchronised ones when several processes train.
            "USE_SYNCBN": False,
            "BACKBONE": Node(
                {
                    # each followed by "-FPN-RETINANET", or your own
                    # (docs/extending.md).
                    "CONV_BODY": "R-50-C4",
                    # Stages from the stem on whose weights stay fixed: 0 none, 1 stem, 2 stem and layer1, ...
                    "FREEZE_CONV_BODY_AT": 2,
                    # GroupNorm in the backbone, whatever TRANS_FUNC and STEM_FUNC say.
                    "USE_GN": False,
                }
            ),
            # (new) The network between backbone and head: FPN, or your own (docs/extending.md).
            "NECK": Node({"NAME": "FPN"}),
            # (new) ATSSHead, or your own (docs/extending.md).
            "HEAD": Node({"NAME": "ATSSHead"}),
            # (new) ATSSLoss, or your own (docs/extending.md).
            "LOSS": Node({"NAME": "ATSSLoss"}),
            # GroupNorm, and a ReLU, after each convolution of the FPN.
            "FPN": Node({"USE_GN": False, "USE_RELU": False}),
            # GroupNorm of backbone and FPN: NUM_GROUPS, or DIM_PER_GP channels per group with NUM_GROUPS -1.
            "GROUP_NORM": Node({"DIM_PER_GP": -1, "NUM_GROUPS": 32, "EPSILON": 1e-5}),
            "RESNETS": _resnets(),
            "ATSS": _atss(),
            # P6 is computed from C5 if true, else from P5.
            "RETINANET": Node({"USE_C5": True}),
        }
    )


def _resnets() -> Node:
    return Node(
        {
            # Groups of the 3x3 convolution and channels a group in layer1 (1x64 ResNet, 32x8 and 64x4
            # ResNeXt). A basic block is WIDTH_PER_GROUP wide.
            "NUM_GROUPS": 1,
            "WIDTH_PER_GROUP": 64,
            # Where a bottleneck strides: its first 1x1 (Caffe2 and MSRA weights) or its 3x3 (torchvision).
            "STRIDE_IN_1X1": True,
            # "...WithFixedBatchNorm", "...WithBatchNorm" (new) or "...WithGN".
            "TRANS_FUNC": "BottleneckWithFixedBatchNorm",
            "STEM_FUNC": "StemWithFixedBatchNorm",
            # Belongs to a part that is not here: only 1 is accepted.
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
        }
    )


def _atss() -> Node:
    return Node(
        {
            # Object classes plus one for the background: 81 for COCO. Where no file and no override gives it,
            # it follows from the data set or the checkpoint.
            "NUM_CLASSES": 81,
            # Anchor side on each level, or a list of several.
            "ANCHOR_SIZES": (64, 128, 256, 512, 1024),
            # Height / width.
            "ASPECT_RATIOS": (1.0,),
            # Only these, the strides of P3 to P7.
            "ANCHOR_STRIDES": (8, 16, 32, 64, 128),
            # How far an anchor may leave the image before it is marked as not visible; -1 disables the mark.
            # ATSS does not use the mark.
            "STRADDLE_THRESH": 0,
            # Scale i of n has side ANCHOR_SIZE * OCTAVE ** (i / n).
            "OCTAVE": 2.0,
            "SCALES_PER_OCTAVE": 1,
            # 3x3 convolutions in each tower of the head; the last is deformable if USE_DCN_IN_TOWER.
            "NUM_CONVS": 4,
            "USE_DCN_IN_TOWER": False,
            # (new) Normalisation in the towers: GN (32 groups) or none.
            "TOWER_NORM": "GN",
            # (new) Predict the centerness. If false, a score is the class probability alone, not the root of
            # its product with the centerness, and the box terms of all positives weigh the same.
            "USE_CENTERNESS": True,
            # (new) Multiply the encoded boxes of each level by a learnt number.
            "USE_SCALE": True,
            # Focal loss.
            "LOSS_ALPHA": 0.25,
            "LOSS_GAMMA": 2.0,
            # Label assignment: ATSS, SSC (FCOS), IoU (RetinaNet) or TOPK.
            "POSITIVE_TYPE": "ATSS",
            # Only for IoU: at least FG is positive, under BG is background, between is ignored.
            "FG_IOU_THRESHOLD": 0.5,
            "BG_IOU_THRESHOLD": 0.4,
            # Only for ATSS (candidates per level) and TOPK (positives per object).
            "TOPK": 9,
            # (new) Positives must have their centre inside their box. SSC is defined by that and needs True.
            "POSITIVES_IN_BOX": True,
            # (new) Only for ATSS: an object that would have no positive gets the candidate it overlaps most
            # that no other object needs, even if its centre is outside the object's box.
            "AT_LEAST_ONE": False,
            # (new) Only for SSC: positives must lie less than so many strides from the object's centre,
            # across and down. 0 is off; FCOS's centre sampling, "ATSS lite" in the paper, is 1.5.
            "CENTER_SAMPLING_RADIUS": 0.0,
            # BOX regresses from an anchor box, POINT the distances from its centre to the four sides.
            "REGRESSION_TYPE": "BOX",
            # (new) GIoU of the decoded boxes, or SmoothL1 of the encoded ones (RetinaNet); and its factor,
            # which RetinaNet has at 1 with SmoothL1.
            "REG_LOSS_TYPE": "GIoU",
            "REG_LOSS_WEIGHT": 2.0,
            # Class probability that the head predicts everywhere when training starts.
            "PRIOR_PROB": 0.01,
            # Detections: minimal class probability, IoU of NMS, candidates per level before NMS.
            "INFERENCE_TH": 0.05,
            "NMS_TH": 0.6,
            "PRE_NMS_TOP_N": 1000,
        }
    )


def _input() -> Node:
    return Node(
        {
            # Short side in training: one of these at random, or any whole number in RANGE if that is set.
            "MIN_SIZE_TRAIN": (800,),
            "MIN_SIZE_RANGE_TRAIN": (-1, -1),
            # Cap of the long side.
            "MAX_SIZE_TRAIN": 1333,
            # Short side in testing.
            "MIN_SIZE_TEST": 800,
            # Cap of the long side in testing.
            "MAX_SIZE_TEST": 1333,
            # (new) Probability of mirroring a training image; 0.5 is built into the published code.
            "HORIZONTAL_FLIP_PROB_TRAIN": 0.5,
            # Pixel statistics, in the order and range that TO_BGR255 chooses: BGR in 0..255 or RGB in 0..1.
            "PIXEL_MEAN": [102.9801, 115.9465, 122.7717],
            "PIXEL_STD": [1.0, 1.0, 1.0],
            "TO_BGR255": True,
            # (new) Images of more pixels (width times height) are refused; RGB takes 3 bytes per pixel.
            "MAX_PIXELS": 200_000_000,
            # (new) Bits of the camera that took grey images of more than 8 bits, such as 12 in files of 16;
            # 0: those of the file.
            "GREY_BITS": 0,
        }
    )


def _datasets() -> Node:
    return Node(
        {
            # Each a name from config/catalog.py or REGISTER, or (new) where the data set is:
            # "annotations.json@images" (COCO), "folder@split" (VOC, YOLO) or "data.yaml@split" (YOLO).
            "TRAIN": (),
            "TEST": (),
            # (new) Own names for such places, which start from the current folder:
            # REGISTER: {cells_train: "cells/train.json@cells/images"}.
            "REGISTER": Node(),
            # (new) The folder that the paths of the catalogue start from.
            "DATA_DIR": "datasets",
        }
    )


def _dataloader() -> Node:
    return Node(
        {
            # Worker processes; 0 loads in the main process.
            "NUM_WORKERS": 4,
            # Padded sides are multiples of this; 0 leaves them as they are.
            "SIZE_DIVISIBILITY": 0,
            # Batches hold either wide (height < width) or tall and square images.
            "ASPECT_RATIO_GROUPING": True,
            # (new) Leave out of training the images without any object; if False they are trained on as
            # background. Those with only crowds or boxes without area are left out in either case.
            "FILTER_EMPTY_ANNOTATIONS": True,
            # (new) Count and skip images that cannot be read, instead of stopping.
            "SKIP_CORRUPT": False,
        }
    )


def _solver() -> Node:
    return Node(
        {
            # Iterations, images an iteration over all processes.
            "MAX_ITER": 40000,
            "IMS_PER_BATCH": 16,
            # Learning rate after the warm-up.
            "BASE_LR": 0.001,
            # Biases learn BIAS_LR_FACTOR times as fast, deformable offsets DCONV_OFFSETS_LR_FACTOR times.
            "BIAS_LR_FACTOR": 2,
            "DCONV_OFFSETS_LR_FACTOR": 1.0,
            # Of SGD; biases have a decay of their own.
            "MOMENTUM": 0.9,
            "WEIGHT_DECAY": 0.0005,
            "WEIGHT_DECAY_BIAS": 0,
            # The rate is multiplied by GAMMA at each of STEPS (iterations).
            "GAMMA": 0.1,
            "STEPS": (30000,),
            # During the first WARMUP_ITERS: "constant" BASE_LR * FACTOR, or "linear" from there to BASE_LR.
            "WARMUP_FACTOR": 1.0 / 3,
            "WARMUP_ITERS": 500,
            "WARMUP_METHOD": "linear",
            # (new) "step" is the published schedule; "cosine" falls to 0 at MAX_ITER (arXiv 1608.03983).
            # Both begin with the warm-up.
            "SCHEDULE": "step",
            # (new) If above 0, BASE_LR is meant for so many images a batch: the rate is
            # BASE_LR * IMS_PER_BATCH / LR_REFERENCE_BATCH. Nothing else ever changes it.
            "LR_REFERENCE_BATCH": 0,
            # (new) Parts that each process splits its share of a batch into, one after the other, to save
            # memory. The update is that of the whole batch.
            "GRAD_ACCUM_STEPS": 1,
            # (new) Mixed precision in training: "bfloat16", "float16", empty for none. float16 needs a loss
            # scaler, which waits for the GPU in each iteration.
            "AMP": "",
            # (new) Largest norm of all gradients together; 0 does not clip.
            "CLIP_GRAD_NORM": 0.0,
            # (new) Also keep an exponential moving average of the weights, which is what is tested then;
            # 0.9998 averages over about 5,000 iterations, 0 is off.
            "EMA_DECAY": 0.0,
            # Iterations between checkpoints, and (new) between log lines.
            "CHECKPOINT_PERIOD": 2500,
            "LOG_PERIOD": 20,
        }
    )


def _test() -> Node:
    return Node(
        {
            # [(task, metric, mean, std), ...], for example [("bbox", "AP", 0.393, 0.002)]; results further
            # than SIGMA_TOL std from the mean are reported.
            "EXPECTED_RESULTS": [],
            "EXPECTED_RESULTS_SIGMA_TOL": 4,
            # Images a batch over all processes, at least one for each.
            "IMS_PER_BATCH": 8,
            # Most detections of an image, the best.
            "DETECTIONS_PER_IMG": 100,
            # (new) Iterations between tests during training, 0 for none; model_best.pth is the best of them
            # by BEST_METRIC (AP, AP50, ...) on the first data set of DATASETS.TEST.
            "EVAL_PERIOD": 0,
            "BEST_METRIC": "AP",
            # (new) Write OUTPUT_DIR/inference/<data set>/report.html after the final test on a data set with
            # annotations; tests during training write none.
            "REPORT": True,
            # (new) What computes the metrics: "pycocotools", "faster_coco_eval" or "hotcoco". "auto" is the
            # fastest that is installed; all give the same numbers (benchmarks/RESULTS.md).
            "COCO_EVAL": "auto",
            "BBOX_AUG": _bbox_aug(),
        }
    )


def _bbox_aug() -> Node:
    """Return the keys of multi-scale testing, which looks at an image in several sizes, one at a time."""
    return Node(
        {
            # Look in several sizes.
            "ENABLED": False,
            # Short sides besides INPUT.MIN_SIZE_TEST. The long side is capped at MAX_SIZE, for short sides
            # below 800 at INPUT.MAX_SIZE_TEST.
            "SCALES": (),
            "MAX_SIZE": 4000,
            # Look at the flipped image as well: at INPUT.MIN_SIZE_TEST, and at each of SCALES.
            "H_FLIP": False,
            "SCALE_H_FLIP": False,
            # If true, each size has its own NMS, keeps DETECTIONS_PER_IMG, and MERGE_TYPE merges what they
            # found, at most PRE_NMS_TOP_N an image: "vote" averages boxes of an IoU from VOTE_TH on,
            # "soft-vote" keeps the averaged ones as well, rescored, "nms" keeps the best. If false, one NMS
            # over the candidates of all sizes leaves DETECTIONS_PER_IMG.
            "VOTE": False,
            "VOTE_TH": 0.66,
            "MERGE_TYPE": "vote",
            # With VOTE: for each of SCALES the (smallest, largest) square root of area, in pixels of that
            # size, of the objects that are looked for; empty for all.
            "SCALE_RANGES": (),
        }
    )

"""SegStudio: semantic segmentation in one module, in the order of a lecture.

Semantic segmentation assigns a class to every pixel of an image. This module teaches it by
experiments. Read it from top to bottom:

SegStudio                              the settings of a run, its device and its folder
  SemanticSegmentation                 an experiment:
    §1 data                            PurdueShapes5MultiObjectDataset, CocoSingleObjectDataset
    §2 networks                        mUnet (SkipBlockDN, SkipBlockUP), UNet
    §3 losses                          SegmentationLossMSE, -MAE, -Dice, -Comb, -BCEDice
    §4 scores                          SegmentationScores, ConstantMask
    §5 training                        Muon, train: the loop and its step
    §6 testing and predicting          score, predict_image, run_code_for_testing_...
    §7 figures                         test pictures, overlays, the coverage probe
§8 backstage                           archives, cache, drawing, the record of a training, flags

Words: an *image* (3, H, W) holds values from 0 to 255. A *mask* (C, H, W) has one plane per
class: the class's mask value on its objects, 0 elsewhere. The *output* (C, H, W) is what the
network returns; a *pred* is the output after thresholding: True or False for each pixel. Lower
losses and higher scores are better. In shapes, N is the number of images in a batch, C the
number of classes, H the height and W the width.

To copy a class into a file of your own: `python -m SegStudio show mUnet` prints a file that runs.
Networks, losses and scores need nothing but `import torch` and `from torch import nn`.
"""

import contextlib
import json
import math
import numbers
import random
import re
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import skimage.segmentation
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2
from tqdm import tqdm

__version__ = "2.0.0"


class SegStudio:
    """The settings of a run, the device that it uses and the folder that it writes to.

    Every experiment starts by making one. A run writes to one folder, `results_dir`/`run_name`.
    DLStudio's keyword arguments keep their meaning.

    Args:
        dataroot: folder of the data archives.
        image_size: [H, W] of the images.
        path_saved_model: a file for the trained weights, as in DLStudio: training writes it,
            testing reads it. None: the weights are only in model.pt of the run's folder.
        momentum, learning_rate, epochs, batch_size: settings of the training by SGD.
        classes: names of the classes, in the order of the output channels.
        use_gpu: True: use CUDA if it is there, else Apple's MPS, else the CPU. False: the CPU.
        debug_train, debug_test, convo_layers_config: DLStudio's arguments, kept for its scripts.
        seed: makes a run repeatable: the first weights, the image order, the augmentation.
        num_workers: extra processes that load data. 0: the main process loads them.
        results_dir: folder of all runs.
        run_name: folder of this run in results_dir; a second run of that name overwrites its
            files. None: the script's name, with a number if that name is taken.
        show: open a window for each figure, besides saving it.

    Errors: ValueError for positional, unknown or impossible arguments. OSError if results_dir
    cannot be written.

    Class Path:   SegStudio
    """

    # Okabe and Ito's palette: eight colours that colour-blind readers can tell apart.
    PALETTE = (
        "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999",
    )  # fmt: skip

    def __init__(
        self,
        *args,
        dataroot="./data/PurdueShapes5MultiObject/",
        image_size=(64, 64),
        path_saved_model=None,
        momentum=0.9,
        learning_rate=1e-4,
        epochs=6,
        batch_size=4,
        classes=("rectangle", "triangle", "disk", "oval", "star"),
        use_gpu=False,
        debug_train=0,
        debug_test=0,
        convo_layers_config=None,
        seed=None,
        num_workers=0,
        results_dir="runs",
        run_name=None,
        show=False,
        **unknown,
    ):
        refuse_unknown_settings(args, unknown)
        self.dataroot = dataroot
        self.image_size = image_size
        self.path_saved_model = path_saved_model
        self.momentum = momentum
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.class_labels = classes
        self.use_gpu = use_gpu
        self.debug_train = debug_train
        self.debug_test = debug_test
        self.convo_layers_config = convo_layers_config
        self.seed = seed
        self.num_workers = num_workers
        self.results_dir = results_dir
        self.run_name = run_name
        self.show = show
        check_settings(self)
        self.device = torch.device("cpu")
        if use_gpu and torch.cuda.is_available():
            self.device = torch.device("cuda:0")
        elif use_gpu and torch.backends.mps.is_available():
            self.device = torch.device("mps")
        self._run_dir = None
        self._displayed = 0
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - students' own code may draw from it
            torch.manual_seed(seed)

    @property
    def run_dir(self) -> Path:
        """The folder of this run, created at its first use."""
        if self._run_dir is None:
            self._run_dir = make_run_dir(Path(self.results_dir).expanduser(), self.run_name)
        return self._run_dir

    def log(self, text: str = "") -> None:
        """Print a line and append it to log.txt in the run's folder."""
        tqdm.write(text)  # print would break the progress bar
        with (self.run_dir / "log.txt").open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def write_json(self, name: str, content: Any) -> None:
        """Write `content` to the file `name` in the run's folder."""
        text = json.dumps(content, indent=2, default=str) + "\n"
        write = self.write_atomically
        write(self.run_dir / name, lambda part: part.write_text(text, encoding="utf-8"))

    def new_figure(self, **options: Any) -> Figure:
        """A matplotlib figure; with show=True it has a window."""
        if self.show:
            import matplotlib.pyplot as plt  # only here: it may start a window system

            return plt.figure(**options)
        return Figure(**options)

    def save_figure(self, figure: Figure, name: str) -> Path:
        """Save a figure in the run's folder; with show=True, open its window."""
        path = self.run_dir / name
        self.write_atomically(
            path, lambda part: figure.savefig(part, format="png", bbox_inches="tight")
        )
        if self.show:
            import matplotlib.pyplot as plt

            plt.show()
            plt.close(figure)
        return path

    def display_tensor_as_image(self, tensor: torch.Tensor, title: str = "") -> None:
        """Save a tensor as a picture in the run's folder; with show=True, open it in a window.

        Integer tensors hold values from 0 to 255, float tensors from 0 to 1; other values are
        clipped. As in DLStudio, a float tensor with minimum -1 and maximum 1 counts as a normalized
        image and is rescaled to 0..1. In greyscale the minimum is black and the maximum is white.

        Shape: (3, H, W) colour, (1, H, W) or (H, W) greyscale, on any device.
        Errors: ValueError for another shape.

        Class Path:   SegStudio  ->  display_tensor_as_image
        """
        if tensor.dim() == 2:
            tensor = tensor[None]
        if tensor.dim() != 3 or tensor.shape[0] not in (1, 3):
            raise ValueError(
                f"display_tensor_as_image shows tensors of shape (3, H, W), (1, H, W) or (H, W), "
                f"not {tuple(tensor.shape)}"
            )
        picture = tensor.detach().cpu().float()
        if (picture.min().item(), picture.max().item()) == (-1.0, 1.0):
            picture = picture / 2.0 + 0.5
        elif not tensor.is_floating_point():
            picture = picture / 255
        if picture.shape[0] == 3:
            picture = picture.clamp(0, 1)
        height, width = picture.shape[1:]
        self._displayed += 1
        figure = self.new_figure(figsize=(6, 6 * min(max(height / width, 0.3), 3) + 0.4), dpi=150)
        axes = figure.add_subplot()
        axes.imshow(picture.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray")
        axes.set_title(title)
        axes.set_axis_off()
        slug = re.sub(r"\W+", "-", title).strip("-")[:60]
        self.save_figure(figure, f"display-{self._displayed:03d}{'-' + slug if slug else ''}.png")

    class SemanticSegmentation(nn.Module):
        """An experiment in semantic segmentation: data, networks, losses, scores, training.

        A script creates one, gives it a training set and a test set, and calls its training and
        testing methods. Students subclass it and override these methods.

        Args:
            dl_studio: the settings, a SegStudio.
            max_num_objects: the largest number of objects in an image, 5 in the homework.
            dataserver_train, dataserver_test: the datasets; they can also be set later.
            dataset_file_train, dataset_file_test: DLStudio's arguments; unused, also in DLStudio.

        Class Path:   SegStudio  ->  SemanticSegmentation
        """

        # Defaults on the class: a student's subclass may skip this __init__.
        dataserver_train = dataserver_test = dataserver_validation = None
        train_dataloader = test_dataloader = None
        order = None  # the generator that shuffles the training images, if there is a seed

        def __init__(
            self,
            dl_studio,
            max_num_objects,
            dataserver_train=None,
            dataserver_test=None,
            dataset_file_train=None,
            dataset_file_test=None,
        ):
            super().__init__()
            self.dl_studio = dl_studio
            self.max_num_objects = max_num_objects
            self.dataserver_train = dataserver_train
            self.dataserver_test = dataserver_test

        # ==== §1 DATA ============================================================================

        class PurdueShapes5MultiObjectDataset(Dataset):
            """Pictures of one to five coloured shapes; the class of every pixel is known.

            An item is a dict:
                image        (3, 64, 64) float32, 0..255: red, green and blue
                mask_tensor  (5, 64, 64) uint8, one plane per class: plane k holds the class's mask
                             value 50 * (k + 1) where class k is visible, 0 elsewhere
                bbox_tensor  (5, 5, 4) float32: bbox_tensor[i, k] is box i of class k as [x1, y1,
                             x2, y2]: first column, first row, last column, last row; zeros if
                             there is no such box

            The mask values are rectangle 50, triangle 100, disk 150, oval 200 and star 250.

            Example: one row of an image in which a triangle partly covers a disk.
                image, red        0   0  90  90  90  90 200 200   0
                image, green      0   0  30  30  30  30 180 180   0
                plane 1, triangle 0   0 100 100 100 100   0   0   0
                plane 2, disk     0   0   0   0   0   0 150 150   0
                planes 0, 3, 4    0   0   0   0   0   0   0   0   0
            The colours are random, so the class can only be recognised by the shape. The hidden
            part of the disk is not in its mask. doc/masks.md shows all five planes of an image.

            The course provides the data as one file, an archive; `generate` draws similar archives.

            Args:
                dl_studio: the settings; the file is dataroot/dataset_file, with images of 64x64.
                segmenter, train_or_test: DLStudio's arguments, kept as attributes.
                dataset_file: name of the archive, a gzip of a pickle (Datasets/README.md).
                num_images: use only this many images, the first ones. None: all.

            Errors: FileNotFoundError if the archive is missing, ValueError if it is damaged.
            Source: DLStudio 2.3.6 (Avinash Kak).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  PurdueShapes5MultiObjectDataset
            """

            label_map = {"rectangle": 50, "triangle": 100, "disk": 150, "oval": 200, "star": 250}
            class_labels = {50: "rectangle", 100: "triangle", 150: "disk", 200: "oval", 250: "star"}
            class_names = tuple(label_map)
            mask_values = tuple(class_labels)
            num_shapes = 5

            def __init__(
                self, dl_studio, segmenter, train_or_test, dataset_file, *, num_images=None
            ):
                super().__init__()
                self.image_size = dl_studio.image_size
                self.segmenter = segmenter
                self.train_or_test = train_or_test
                # The cache is a file on the disk; __getitem__ reads one image from it.
                archive = find_archive(dl_studio, dataset_file)
                self.cache, self.generated = open_archive(archive, num_images)

            def __len__(self):
                return len(self.cache)

            def __getitem__(self, index: int) -> dict:
                return {
                    "image": torch.from_numpy(self.cache.images[index].astype(np.float32)),
                    "mask_tensor": torch.from_numpy(self.cache.masks[index].copy()),
                    "bbox_tensor": torch.from_numpy(self.cache.boxes[index].astype(np.float32)),
                }

            @property
            def dataset(self) -> Mapping:
                """The items as in the archive: {index: [R, G, B, mask_array, bbox_map]}."""
                return ArchiveItems(self.cache)

            @dataset.setter
            def dataset(self, items):
                self.cache = pack_items(items)

            @staticmethod
            def generate(path, num_images: int, seed: int = 0) -> Path:
                """Draw an archive like the course's; the same seed gives the same images."""
                return generate_archive(path, num_images, seed)

            @staticmethod
            def find_or_generate(dataroot, dataset_file: str, seed: int = 0) -> Path:
                """The path of the archive. If it is missing, draw as many images as its name says:
                PurdueShapes5MultiObject-10000-train.gz has 10,000."""
                return find_or_generate_archive(Path(dataroot).expanduser() / dataset_file, seed)

        class CocoSingleObjectDataset(Dataset):
            """Photos with one object each, from a folder that Datasets/prepare_coco.py wrote.

            The homework's bonus task: one object per photo, one output channel. The core of the
            preparation is short; pycocotools does the work:
                coco = COCO("instances_train2017.json")
                for image_id in coco.getImgIds(catIds=dog_ids):
                    annotations = coco.loadAnns(coco.getAnnIds(image_id))
                    if len(annotations) == 1 and min(annotations[0]["bbox"][2:]) >= 200:
                        mask = 255 * coco.annToMask(annotations[0])  # (H, W) of 0 and 255
            Images and masks are then resized to one size and saved. Datasets/coco_single_object.py
            has the full code, ready to copy.

            An item is a dict like that of the shapes, so that the same loop trains on both:
                image        (3, H, W) float32, 0..255
                mask_tensor  (1, H, W) uint8: mask_value on the object, 0 elsewhere
                bbox_tensor  (1, 1, 4) float32: [x1, y1, x2, y2] of the object's pixels
                category     int, the index of its class in class_names

            Args:
                dl_studio: the settings; the folder is dataroot/dataset_dir.
                segmenter, train_or_test: as in PurdueShapes5MultiObjectDataset.
                mask_value: value of the object's pixels, 255 in the homework, or 1. It sets the
                    scale of the loss: the squared error of 255-valued masks is 65,025 times larger.
                num_images: use only this many images, the first ones. None: all.

            Errors: FileNotFoundError and ValueError; the message says what to do.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  CocoSingleObjectDataset
            """

            def __init__(
                self,
                dl_studio,
                segmenter,
                train_or_test,
                dataset_dir,
                *,
                mask_value=255,
                num_images=None,
            ):
                super().__init__()
                self.segmenter = segmenter
                self.train_or_test = train_or_test
                self.mask_value = mask_value
                folder = Path(dl_studio.dataroot, dataset_dir).expanduser()
                self.manifest = read_manifest(folder, train_or_test, dl_studio.image_size)
                self.generated = self.manifest.get("description", "").startswith("SYNTHETIC")
                self.class_names = tuple(self.manifest["options"]["classes"])
                self.class_labels = dict(enumerate(self.class_names))
                self.mask_values = (check_mask_value(mask_value),)
                self.cache = open_prepared_folder(folder, self.manifest, num_images)

            def __len__(self):
                return len(self.cache)

            def __getitem__(self, index: int) -> dict:
                mask = self.cache.masks[index] * np.uint8(self.mask_value)
                return {
                    "image": torch.from_numpy(self.cache.images[index].astype(np.float32)),
                    "mask_tensor": torch.from_numpy(mask),
                    "bbox_tensor": torch.from_numpy(self.cache.boxes[index].astype(np.float32)),
                    "category": int(self.cache.categories[index]),
                }

        def load_PurdueShapes5MultiObject_dataset(
            self, dataserver_train: Dataset, dataserver_test: Dataset
        ) -> None:
            """Make self.train_dataloader (shuffled) and self.test_dataloader, as DLStudio does."""
            dls = self.dl_studio
            self.dataserver_train = dataserver_train
            self.dataserver_test = dataserver_test
            # With a seed, the order has its own generator: other random numbers do not change it.
            self.order = None if dls.seed is None else torch.Generator().manual_seed(dls.seed)
            settings = {"batch_size": dls.batch_size, "num_workers": dls.num_workers}
            self.train_dataloader = DataLoader(
                dataserver_train, shuffle=True, generator=self.order, **settings
            )
            self.test_dataloader = DataLoader(dataserver_test, shuffle=False, **settings)

        load_Coco_dataset = load_PurdueShapes5MultiObject_dataset  # the report's name

        # ==== §2 NETWORKS ========================================================================

        class mUnet(nn.Module):
            """DLStudio's U-Net: residual blocks, and skip connections with half of the channels.

            Recognising a shape needs a large receptive field, so the encoder halves the resolution
            three times. That loses the position of edges; skip connections copy half of the
            encoder's channels to the decoder to restore it. Inside the blocks, residual
            connections add the input to the output.

            Args:
                skip_connections: DLStudio's name for the residual connections inside the blocks;
                    False leaves them out.
                depth: depth // 2 blocks of each kind are made; 16 in the homework.
                out_channels: C, the number of classes.
                upsampling: "strided" is DLStudio's: three output pixels in four equal the bias of
                    conv_out for every image. "dense": every output pixel depends on the image. Both
                    have the same parameters and state dict.
                width: channels at high resolution; twice as many at low resolution.
                input_scale: factor on the pixel values, 1/255 for inputs from 0 to 1.

            Shape: (N, 3, H, W) -> (N, C, H, W), H and W divisible by 8.
            Errors: ValueError for arguments out of range and for an input of another shape.
            Source: DLStudio 2.3.6 (A. Kak); Ronneberger et al., "U-Net", MICCAI 2015.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  mUnet
            """

            class SkipBlockDN(nn.Module):
                """A residual block of the encoder: two 3x3 convolutions plus the input.

                The sum gives gradients a path around the convolutions. As in DLStudio, a block that
                changes the number of channels does not use its second convolution.

                Shape: (N, in_ch, H, W) -> (N, out_ch, H, W), or (N, out_ch, H/2, W/2) with
                downsample; out_ch is in_ch or 2 * in_ch.
                Source: DLStudio 2.3.6; He et al., "Deep residual learning", CVPR 2016.

                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SkipBlockDN
                """

                def __init__(self, in_ch, out_ch, downsample=False, skip_connections=True):
                    super().__init__()
                    self.downsample = downsample
                    self.skip_connections = skip_connections
                    self.in_ch = in_ch
                    self.out_ch = out_ch
                    self.convo1 = nn.Conv2d(in_ch, out_ch, 3, stride=1, padding=1)
                    self.convo2 = nn.Conv2d(in_ch, out_ch, 3, stride=1, padding=1)
                    self.bn1 = nn.BatchNorm2d(out_ch)
                    self.bn2 = nn.BatchNorm2d(out_ch)
                    if downsample:
                        self.downsampler = nn.Conv2d(in_ch, out_ch, 1, stride=2)

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    identity = x
                    out = torch.relu(self.bn1(self.convo1(x)))  # (N, out_ch, H, W)
                    if self.in_ch == self.out_ch:
                        out = torch.relu(self.bn2(self.convo2(out)))
                    if self.downsample:
                        out = self.downsampler(out)  # (N, out_ch, H/2, W/2)
                        identity = self.downsampler(identity)  # the same weights, as in DLStudio
                    if self.skip_connections:
                        if self.in_ch != self.out_ch:
                            identity = torch.cat((identity, identity), dim=1)  # (N, 2*in_ch, H, W)
                        out = out + identity
                    return out

            class SkipBlockUP(nn.Module):
                """A residual block of the decoder: SkipBlockDN with transposed convolutions.

                A 1x1 kernel with stride 2 writes to one pixel in four. "dense" upsampling applies
                it at stride 1 and then copies each pixel to a 2x2 square.

                Shape: (N, in_ch, H, W) -> (N, out_ch, H, W), or (N, out_ch, 2H, 2W) with
                upsample; out_ch is in_ch or in_ch / 2.
                Source: DLStudio 2.3.6.

                Class Path:   SegStudio  ->  SemanticSegmentation  ->  SkipBlockUP
                """

                def __init__(
                    self,
                    in_ch,
                    out_ch,
                    upsample=False,
                    skip_connections=True,
                    *,
                    upsampling="strided",
                ):
                    super().__init__()
                    self.upsample = upsample
                    self.skip_connections = skip_connections
                    self.in_ch = in_ch
                    self.out_ch = out_ch
                    self.convoT1 = nn.ConvTranspose2d(in_ch, out_ch, 3, padding=1)
                    self.convoT2 = nn.ConvTranspose2d(in_ch, out_ch, 3, padding=1)
                    self.bn1 = nn.BatchNorm2d(out_ch)
                    self.bn2 = nn.BatchNorm2d(out_ch)
                    self.enlarge = nn.Identity()
                    if upsample and upsampling == "strided":
                        self.upsampler = nn.ConvTranspose2d(
                            in_ch, out_ch, 1, stride=2, dilation=2, output_padding=1
                        )
                    elif upsample:
                        self.upsampler = nn.ConvTranspose2d(in_ch, out_ch, 1)
                        self.enlarge = nn.Upsample(scale_factor=2)  # nearest neighbour

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    identity = x
                    out = torch.relu(self.bn1(self.convoT1(x)))  # (N, out_ch, H, W)
                    if self.in_ch == self.out_ch:
                        out = torch.relu(self.bn2(self.convoT2(out)))
                    if self.upsample:
                        out = self.enlarge(self.upsampler(out))  # (N, out_ch, 2H, 2W)
                        identity = self.enlarge(self.upsampler(identity))
                    if self.skip_connections:
                        if self.in_ch != self.out_ch:
                            identity = identity[:, self.out_ch :]  # (N, in_ch/2, H, W)
                        out = out + identity
                    return out

            def __init__(
                self,
                skip_connections: bool = True,
                depth: int = 16,
                *,
                out_channels: int = 5,
                upsampling: str = "strided",
                width: int = 64,
                input_scale: float = 1.0,
            ):
                super().__init__()
                if min(depth, out_channels, width) < 1 or width % 2:
                    raise ValueError(
                        f"mUnet needs a depth and out_channels of 1 or more and an even width, "
                        f"not depth={depth}, out_channels={out_channels}, width={width}"
                    )
                if upsampling not in ("strided", "dense"):
                    raise ValueError(f'upsampling is "strided" or "dense", not {upsampling!r}')
                self.arguments = {  # saved with a run, so that its network can be built again
                    "skip_connections": skip_connections,
                    "depth": depth,
                    "out_channels": out_channels,
                    "upsampling": upsampling,
                    "width": width,
                    "input_scale": input_scale,
                }
                self.depth = depth // 2
                self.width = width
                self.input_scale = input_scale

                def down(in_ch, out_ch, downsample=False):
                    return self.SkipBlockDN(in_ch, out_ch, downsample, skip_connections)

                def up(in_ch, out_ch, upsample=False):
                    return self.SkipBlockUP(
                        in_ch, out_ch, upsample, skip_connections, upsampling=upsampling
                    )

                # The names keep DLStudio's numbers of channels, 64 and 128, for any width.
                w = width
                self.pool = nn.MaxPool2d(2)
                self.conv_in = nn.Conv2d(3, w, 3, padding=1)
                self.bn1DN = nn.BatchNorm2d(w)
                self.bn2DN = nn.BatchNorm2d(2 * w)
                self.skip64DN_arr = nn.ModuleList(down(w, w) for _ in range(self.depth))
                self.skip64dsDN = down(w, w, downsample=True)
                self.skip64to128DN = down(w, 2 * w)
                self.skip128DN_arr = nn.ModuleList(down(2 * w, 2 * w) for _ in range(self.depth))
                self.skip128dsDN = down(2 * w, 2 * w, downsample=True)
                self.bn1UP = nn.BatchNorm2d(2 * w)
                self.bn2UP = nn.BatchNorm2d(w)
                self.skip64UP_arr = nn.ModuleList(up(w, w) for _ in range(self.depth))
                self.skip64usUP = up(w, w, upsample=True)
                self.skip128to64UP = up(2 * w, w)
                self.skip128UP_arr = nn.ModuleList(up(2 * w, 2 * w) for _ in range(self.depth))
                self.skip128usUP = up(2 * w, 2 * w, upsample=True)
                # A kernel with stride 2 and dilation 2 reaches only even rows and columns: one
                # pixel in four. With dilation 1 it reaches every pixel.
                gap = 2 if upsampling == "strided" else 1
                self.conv_out = nn.ConvTranspose2d(
                    w, out_channels, 3, stride=2, dilation=gap, output_padding=1, padding=gap
                )

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % 8 or x.shape[3] % 8:
                    raise ValueError(
                        f"mUnet takes (N, 3, H, W), H and W divisible by 8, not {tuple(x.shape)}"
                    )
                early = self.depth // 4
                half = self.width // 2
                # The shapes are those of the homework: width 64, images of 64x64.
                x = self.conv_in(x * self.input_scale)  # (N, 64, 64, 64)
                x = torch.relu(self.pool(x))  # (N, 64, 32, 32)
                for block in self.skip64DN_arr[:early]:
                    x = block(x)
                saved1 = x[:, :half]  # (N, 32, 32, 32)
                x = self.skip64dsDN(x)  # (N, 64, 16, 16)
                for block in self.skip64DN_arr[early:]:
                    x = block(x)
                x = self.bn1DN(x)
                saved2 = x[:, :half]  # (N, 32, 16, 16)
                x = self.skip64to128DN(x)  # (N, 128, 16, 16)
                for block in self.skip128DN_arr[:early]:
                    x = block(x)
                x = self.bn2DN(x)
                saved3 = x[:, : self.width]  # (N, 64, 16, 16)
                for block in self.skip128DN_arr[early:]:
                    x = block(x)
                x = self.skip128dsDN(x)  # (N, 128, 8, 8)

                x = self.skip128usUP(x)  # (N, 128, 16, 16)
                for block in self.skip128UP_arr[:early]:
                    x = block(x)
                x = torch.cat((saved3, x[:, self.width :]), dim=1)
                x = self.bn1UP(x)
                for block in self.skip128UP_arr[:early]:  # the same again; the others are unused
                    x = block(x)
                x = self.skip128to64UP(x)  # (N, 64, 16, 16)
                for block in self.skip64UP_arr[early:]:
                    x = block(x)
                x = torch.cat((saved2, x[:, half:]), dim=1)
                x = self.bn2UP(x)
                x = self.skip64usUP(x)  # (N, 64, 32, 32)
                for block in self.skip64UP_arr[:early]:
                    x = block(x)
                x = torch.cat((saved1, x[:, half:]), dim=1)
                return self.conv_out(x)  # (N, C, 64, 64)

        SkipBlockDN = mUnet.SkipBlockDN
        SkipBlockUP = mUnet.SkipBlockUP
        mUNet = mUnet  # the spelling of DLStudio 2.5.8

        class UNet(nn.Module):
            """A small modern U-Net: the encoder recognises shapes, the decoder restores edges.

            Each level of the encoder halves the resolution, so that the receptive field of the
            deepest feature map covers a whole shape. The decoder doubles the resolution again.
            Skip connections concatenate the encoder's feature maps with the decoder's: they hold
            the exact position of the edges.

            The encoder has two convolutions per level: telling a small triangle from a small
            rectangle is harder than following an edge. In the decoder, a 1x1 convolution reduces
            the channels before the resolution is doubled; after it, the same would cost four times
            as much. Max-pooling and nearest-neighbour upsampling leave no holes.

            The network scales its own input, so scripts do not have to. Train it on
            logits (SegmentationLossBCEDice).

            Args:
                out_channels: C, the number of classes.
                width: channels at half resolution; they double at each level below.
                stem: channels at full resolution, where every channel costs most.

            Shape: (N, 3, H, W) of 0..255 -> (N, C, H, W) logits, H and W divisible by 8.
            Errors: ValueError for an input of another shape.
            Source: Ronneberger et al., "U-Net", MICCAI 2015.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  UNet
            """

            def __init__(self, out_channels: int = 5, width: int = 32, stem: int = 16):
                super().__init__()
                self.arguments = {"out_channels": out_channels, "width": width, "stem": stem}
                w = width
                halve = nn.MaxPool2d(2)
                self.stem = self.conv(3, stem)
                self.encoders = nn.ModuleList([
                    nn.Sequential(halve, self.conv(stem, w), self.conv(w, w)),
                    nn.Sequential(halve, self.conv(w, 2 * w), self.conv(2 * w, 2 * w)),
                    nn.Sequential(halve, self.conv(2 * w, 4 * w), self.conv(4 * w, 4 * w)),
                ])  # fmt: skip
                self.projections = nn.ModuleList([
                    nn.Conv2d(4 * w, 2 * w, 1),
                    nn.Conv2d(2 * w, w, 1),
                    nn.Conv2d(w, stem, 1),
                ])  # fmt: skip
                self.enlarge = nn.Upsample(scale_factor=2)  # copies pixels
                self.decoders = nn.ModuleList([
                    self.conv(4 * w, 2 * w),
                    self.conv(2 * w, w),
                    nn.Conv2d(2 * stem, out_channels, 3, padding=1),  # logits: no ReLU
                ])  # fmt: skip

            @staticmethod
            def conv(in_ch: int, out_ch: int) -> nn.Sequential:
                """A 3x3 convolution, BatchNorm and ReLU."""
                return nn.Sequential(
                    nn.Conv2d(in_ch, out_ch, 3, padding=1, bias=False),
                    nn.BatchNorm2d(out_ch),
                    nn.ReLU(),
                )

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                if x.dim() != 4 or x.shape[1] != 3 or x.shape[2] % 8 or x.shape[3] % 8:
                    raise ValueError(
                        f"UNet takes (N, 3, H, W), H and W divisible by 8, not {tuple(x.shape)}"
                    )
                x = self.stem(x / 255 - 0.1)  # (N, 16, H, W); the shapes' mean pixel is near 0.1
                skips = []
                for encode in self.encoders:
                    skips.append(x)
                    x = encode(x)  # (N, 32, H/2, W/2), (N, 64, H/4, W/4), (N, 128, H/8, W/8)
                for project, decode in zip(self.projections, self.decoders, strict=True):
                    x = self.enlarge(project(x))  # (N, 64, H/4, W/4), (N, 32, ...), (N, 16, H, W)
                    x = decode(torch.cat((x, skips.pop()), dim=1))  # the last one: (N, C, H, W)
                return x

        # ==== §3 LOSSES ==========================================================================

        class SegmentationLossMSE(nn.Module):
            """Mean squared error between output and mask values: the homework's first loss.

            Its gradient grows with the error. So classes with large mask values (up to 250) are
            learned faster, and training can diverge, as on COCO (Examples/coco_exploding_mse.py).

            Shape: output and mask (N, C, H, W) -> scalar, 0 to infinity.
            Errors: ValueError if the shapes differ.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossMSE
            """

            name = "MSE"

            def __init__(self, batch_size=None):
                super().__init__()
                self.batch_size = batch_size  # the homework's argument; any batch works

            def forward(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                if output.shape != mask.shape:
                    raise ValueError(f"output {tuple(output.shape)}, but mask {tuple(mask.shape)}")
                return ((output - mask) ** 2).mean()

        class SegmentationLossMAE(nn.Module):
            """Mean absolute error: every wrong pixel has a gradient of the same size.

            The gradient is the sign of the error, so it cannot explode as that of MSE does. The
            drawback: the best constant output is the median of the mask, which is background.

            Shape: output and mask (N, C, H, W) -> scalar, 0 to infinity.
            Errors: ValueError if the shapes differ.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossMAE
            """

            name = "MAE"

            def __init__(self, batch_size=None):
                super().__init__()
                self.batch_size = batch_size  # the homework's argument; any batch works

            def forward(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                if output.shape != mask.shape:
                    raise ValueError(f"output {tuple(output.shape)}, but mask {tuple(mask.shape)}")
                return (output - mask).abs().mean()

        class SegmentationLossDice(nn.Module):
            """One minus soft Dice: how far the output p is from overlapping the mask m.

            Dice is a score of two sets, 2 |P and M| / (|P| + |M|): 1 if they are equal, 0 if they
            do not overlap. For training, sums of products replace the sizes of the sets. Three
            different losses have this name:

            "squared": 1 - 2 sum(pm) / (sum(pp) + sum(mm) + eps), the homework's handout. From 0
                (p = m) to 2 (p = -m). On a channel without the class it is 1 and its gradient is
                zero: it never removes false positives there.
            "linear": 1 - (2 sum(pm) + s) / (sum(p) + sum(m) + s). For p and m from 0 to 1 only: a
                perfect match of 250-valued masks gives -249.
            "pixelwise": mean of 1 - (2pm + 1) / (p + m + 1), the report's formula. It measures no
                overlap, has a pole at p + m = -1 and no lower bound: p = m = 50 gives -48.5.

            The sums run over the pixels of one image and channel; the loss is the mean over both.
            The report's default was "pixelwise". It diverges within 5 iterations, so the default
            here is "squared".

            Shape: output and mask (N, C, H, W) -> scalar.
            Errors: ValueError for an unknown form, and if the shapes differ.
            Source: Milletari et al., "V-Net", 3DV 2016 (squared); the homework and its report.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossDice
            """

            name = "Dice"

            def __init__(self, batch_size=None, form="squared", *, smooth=1.0, eps=1e-6):
                super().__init__()
                if form not in ("squared", "linear", "pixelwise"):
                    raise ValueError(f'form is "squared", "linear" or "pixelwise", not {form!r}')
                self.batch_size = batch_size  # the homework's argument; any batch works
                self.form = form
                self.smooth = smooth
                self.eps = eps

            def forward(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                if output.shape != mask.shape:
                    raise ValueError(f"output {tuple(output.shape)}, but mask {tuple(mask.shape)}")
                p = output
                m = mask.to(p.dtype)  # uint8 would overflow in m * m
                if self.form == "pixelwise":
                    return (1 - (2 * p * m + 1) / (p + m + 1)).mean()
                overlap = (p * m).sum(dim=(2, 3))  # (N, C)
                if self.form == "squared":
                    size = (p * p).sum(dim=(2, 3)) + (m * m).sum(dim=(2, 3))  # (N, C)
                    return (1 - 2 * overlap / (size + self.eps)).mean()
                size = p.sum(dim=(2, 3)) + m.sum(dim=(2, 3))  # (N, C)
                return (1 - (2 * overlap + self.smooth) / (size + self.smooth)).mean()

        class SegmentationLossComb(nn.Module):
            """base + dice_scale * squared Dice: the value of every pixel, and the overlap.

            MSE and MAE give every pixel the same weight, and most pixels are background. Dice
            measures the overlap, whatever the object's size, but does not fix the value of a single
            pixel. The homework adds both, with scales of 200, 300 and 400, because its MSE is in
            the hundreds and Dice near 1. But training depends on the gradient of each term, not on
            its value: losses.csv shows both.

            The report's Dice term is the pixelwise form, which diverges within 5 iterations; here
            it is the squared form.

            Args:
                batch_size: accepted, because the homework's code passes it; unused.
                dice_scale: factor on the Dice term.
                base: "mse" (shapes) or "mae" (COCO).

            Shape: output and mask (N, C, H, W) -> scalar.
            Errors: ValueError for an unknown base, and if the shapes differ.
            Source: Purdue ECE60146, homework 7 (Spring 2024).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossComb
            """

            def __init__(self, batch_size=None, dice_scale=200, base="mse", *, eps=1e-6):
                super().__init__()
                if base not in ("mse", "mae"):
                    raise ValueError(f'base is "mse" or "mae", not {base!r}')
                self.batch_size = batch_size  # the homework's argument; any batch works
                self.dice_scale = dice_scale
                self.base = base
                self.eps = eps
                self.name = f"{base.upper()}+{dice_scale:g}*Dice"

            def terms(self, output: torch.Tensor, mask: torch.Tensor) -> dict:
                """The terms of the loss by name."""
                if output.shape != mask.shape:
                    raise ValueError(f"output {tuple(output.shape)}, but mask {tuple(mask.shape)}")
                p = output
                m = mask.to(p.dtype)
                base = ((p - m) ** 2).mean() if self.base == "mse" else (p - m).abs().mean()
                overlap = (p * m).sum(dim=(2, 3))  # (N, C)
                size = (p * p).sum(dim=(2, 3)) + (m * m).sum(dim=(2, 3))  # (N, C)
                dice = (1 - 2 * overlap / (size + self.eps)).mean()
                return {self.base: base, "dice": self.dice_scale * dice}

            def forward(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                self.latest_terms = self.terms(output, mask)  # training records them
                return self.latest_terms[self.base] + self.latest_terms["dice"]

        class SegmentationLossBCEDice(nn.Module):
            """Binary cross entropy plus linear Dice on probabilities: the usual loss today.

            The output is a logit; its sigmoid q is the probability that the pixel belongs to the
            class. Cross entropy measures every pixel, and its gradient does not vanish on wrong
            pixels. Dice measures the overlap, so a small star counts as much as a large rectangle.
            Both terms are near 1: no scale has to be tuned.

            Formula: BCE(q, m) + dice_scale * mean over classes of
            1 - (2 sum(qm) + s) / (sum(q) + sum(m) + s), sums over all pixels of the batch.

            With batch_dice=False the sums run over one image. If most channels of most images are
            empty, as in the shapes, this form drives every q to 0 and training stalls.

            Shape: output (N, C, H, W) logits, mask (N, C, H, W) of 0 and 1 -> scalar.
            Errors: ValueError if the shapes differ, and for masks with other values. Masks on a GPU
            are not checked, because the CPU would have to wait for the GPU.
            Source: Isensee et al., "nnU-Net", Nature Methods 2021.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLossBCEDice
            """

            name = "BCE+Dice"
            logits = True  # training then passes masks of 0 and 1; the threshold is 0

            def __init__(self, batch_size=None, dice_scale=1.0, smooth=1.0, *, batch_dice=True):
                super().__init__()
                self.batch_size = batch_size  # the homework's argument; any batch works
                self.dice_scale = dice_scale
                self.smooth = smooth
                self.dims = (0, 2, 3) if batch_dice else (2, 3)

            def terms(self, output: torch.Tensor, mask: torch.Tensor) -> dict:
                """The terms of the loss by name."""
                if output.shape != mask.shape:
                    raise ValueError(f"output {tuple(output.shape)}, but mask {tuple(mask.shape)}")
                if mask.is_cpu and mask.numel() and not 0 <= mask.min() <= mask.max() <= 1:
                    raise ValueError(
                        f"SegmentationLossBCEDice takes masks of 0 and 1, not values up to "
                        f"{mask.max():g}: pass (mask > 0).float()"
                    )
                m = mask.to(output.dtype)
                bce = nn.functional.binary_cross_entropy_with_logits(output, m)
                q = torch.sigmoid(output)
                overlap = (q * m).sum(dim=self.dims)  # (C,), or (N, C) for each image
                size = q.sum(dim=self.dims) + m.sum(dim=self.dims)
                dice = (1 - (2 * overlap + self.smooth) / (size + self.smooth)).mean()
                return {"bce": bce, "dice": self.dice_scale * dice}

            def forward(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                self.latest_terms = self.terms(output, mask)
                return self.latest_terms["bce"] + self.latest_terms["dice"]

        class SegmentationLoss(nn.Module):
            """DLStudio's first loss, kept for scripts that name it: channel 0 against every mask.

            The squared error of the first output channel against each mask plane, summed over the
            planes. It never uses the other output channels, so it cannot teach a network to tell
            shapes apart: a loss can fall although the network does not learn the task. DLStudio's
            loop runs over the batch size instead of the planes; here every plane counts.

            Shape: output and mask (N, C, H, W) -> scalar.
            Errors: ValueError if the shapes differ.
            Source: DLStudio 2.3.6.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationLoss
            """

            def __init__(self, batch_size=None):
                super().__init__()
                self.batch_size = batch_size  # the homework's argument; any batch works

            def forward(self, output: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                if output.shape != mask.shape:
                    raise ValueError(f"output {tuple(output.shape)}, but mask {tuple(mask.shape)}")
                error = (output[:, :1] - mask) ** 2  # (N, C, H, W)
                return error.mean(dim=(2, 3)).sum(dim=1).mean()

        # ==== §4 SCORES ==========================================================================

        class SegmentationScores:
            """IoU, Dice, pixel accuracy and boundary IoU, counted over a whole test set.

            Training minimizes a loss. A score measures how good the masks are, on one scale for all
            networks. The counts of all batches are added up and divided once, at the end: a mean
            over batches would give a nearly empty batch the weight of a full one.

            For each class, over all pixels of all images: I pixels are set in both pred and mask, P
            pixels in the pred and M pixels in the mask.
                IoU             I / (P + M - I), the usual score
                Dice            2I / (P + M) = 2 IoU / (1 + IoU)
                pixel accuracy  share of pixels where both agree. Most pixels are background, so a
                                network that predicts nothing has nearly 1.
                boundary IoU    the IoU of the boundary regions: the pixels of each mask at most d
                                pixels from its edge. It measures outlines; masks full of
                                holes score low.

            The mean is over classes. A class that is in no pred and no mask has no score and is not
            counted. The per-image mean IoU is the mean over all pairs of an image and a class,
            without the pairs in which the class is neither in the pred nor in the mask.

            Shape: update takes pred and mask (N, C, H, W) of True and False. Class k is channel k.
            With one channel and `category` (N,), an image counts for the class of its category.
            Errors: ValueError if the shapes differ.
            Source: Cheng et al., "Boundary IoU", CVPR 2021 (d = 2 % of the image's diagonal).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  SegmentationScores
            """

            metrics = ("iou", "dice", "pixel_accuracy", "boundary_iou")
            titles = ("IoU", "Dice", "pixel accuracy", "boundary IoU")

            def __init__(self, class_names):
                self.class_names = tuple(class_names)
                # For each class: I, P, M, agreeing pixels, all pixels; I, P, M of the boundary
                # regions; sum and number of the IoUs of single images.
                self.counts = torch.zeros(len(self.class_names), 10, dtype=torch.float64)
                self.images = 0

            @staticmethod
            def boundary(mask: torch.Tensor) -> torch.Tensor:
                """The pixels of a mask near its edge: the mask without its erosion."""
                height, width = mask.shape[2:]
                d = max(1, round(0.02 * (height**2 + width**2) ** 0.5))
                unset = (~mask).float()
                unset = nn.functional.pad(unset, (d, d, d, d), value=1.0)  # outside is background
                near_the_edge = nn.functional.max_pool2d(unset, 2 * d + 1, stride=1) > 0
                return mask & near_the_edge

            def update(
                self, pred: torch.Tensor, mask: torch.Tensor, category: torch.Tensor | None = None
            ) -> torch.Tensor:
                """Count one batch; returns the mean IoU of each image (N,), nan if it has none."""
                if pred.shape != mask.shape or pred.dim() != 4:
                    raise ValueError(
                        f"scores need pred and mask of one shape (N, C, H, W), not "
                        f"{tuple(pred.shape)} and {tuple(mask.shape)}"
                    )
                if category is None and pred.shape[1] != len(self.class_names):
                    raise ValueError(
                        f"{pred.shape[1]} channels cannot be scored as the "
                        f"{len(self.class_names)} classes {', '.join(self.class_names)}"
                    )
                pred, mask = pred.bool(), mask.bool()
                pred_edge, mask_edge = self.boundary(pred), self.boundary(mask)
                planes = (
                    pred & mask, pred, mask, pred == mask, torch.ones_like(mask),
                    pred_edge & mask_edge, pred_edge, mask_edge,
                )  # fmt: skip
                counts = torch.stack([p.sum(dim=(2, 3)) for p in planes], dim=-1)  # (N, C, 8)
                counts = counts.cpu().double()  # Apple's MPS has no float64
                union = counts[..., 1] + counts[..., 2] - counts[..., 0]  # (N, C)
                seen = (union > 0).double()
                iou = counts[..., 0] / union.clamp(min=1)
                counts = torch.cat((counts, iou[..., None], seen[..., None]), dim=-1)
                if category is None:
                    self.counts += counts.sum(dim=0)
                else:
                    self.counts.index_add_(0, category.cpu(), counts.sum(dim=1))
                self.images += len(pred)
                return iou.sum(dim=1) / seen.sum(dim=1)

            def __add__(self, other):
                """The scores over two disjoint sets of images, for example of two processes."""
                total = type(self)(self.class_names)
                total.counts = self.counts + other.counts
                total.images = self.images + other.images
                return total

            def compute(self) -> dict:
                """All scores: means, and each class. None: the class is in no pred and no mask."""
                i, p, m, agree, pixels, edge_i, edge_p, edge_m, iou_sum, pairs = self.counts.T
                iou, dice, accuracy = i / (p + m - i), 2 * i / (p + m), agree / pixels
                boundary_iou = edge_i / (edge_p + edge_m - edge_i)
                scores = torch.stack((iou, dice, accuracy, boundary_iou), dim=1)  # (C, 4)

                def number(value):
                    return None if math.isnan(value) else float(value)

                means = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou")
                mean_scores = [number(value) for value in scores.nanmean(dim=0)]
                return {
                    **dict(zip(means, mean_scores, strict=True)),
                    "per_image_mean_iou": number(iou_sum.sum() / pairs.sum()),
                    "images": self.images,
                    "classes": {
                        name: dict(zip(self.metrics, map(number, row), strict=True))
                        for name, row in zip(self.class_names, scores, strict=True)
                    },
                }

            def table(self, before=None) -> str:
                """The scores as text; with `before` (other scores), each cell is before -> now."""

                def rows(scores):
                    found = scores.compute()
                    mean = [*found.values()][:4]  # the means come first
                    return [[*row.values()] for row in found["classes"].values()] + [mean]

                def cell(value):
                    return "  -  " if value is None else f"{value:.3f}"

                width = 16  # as wide as the longest title and two spaces
                now = rows(self)
                then = now if before is None else rows(before)
                lines = [f"{'':14}" + "".join(f"{title:>{width}}" for title in self.titles)]
                for name, old, new in zip((*self.class_names, "mean"), then, now, strict=True):
                    cells = [
                        cell(n) if before is None else f"{cell(o)} -> {cell(n)}"
                        for o, n in zip(old, new, strict=True)
                    ]
                    lines.append(f"{name:14}" + "".join(f"{c:>{width}}" for c in cells))
                per_image = cell(self.compute()["per_image_mean_iou"])
                lines.append(f"mean IoU of single images {per_image}, over {self.images} images")
                return "\n".join(lines)

            __str__ = table

        class ConstantMask(nn.Module):
            """A "network" that ignores the image: its output is always the same.

            Compare every score with a baseline that ignores the image.

            Shape: mask (C, H, W); input (N, 3, H, W) -> output (N, C, H, W).

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  ConstantMask
            """

            def __init__(self, mask):
                super().__init__()
                self.register_buffer("mask", mask.float())

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.mask.expand(len(x), -1, -1, -1)

        # ==== §5 TRAINING ========================================================================

        class Muon(torch.optim.Optimizer):
            """Gradient descent with momentum; a step changes all directions of a layer equally.

            The gradient of a layer, seen as a matrix, is dominated by a few directions. Muon
            replaces it by the nearest orthogonal matrix, in which all directions have the same
            size. So rare features are learned as fast as frequent ones.

            Use it for the kernels of hidden convolutions. Biases, BatchNorm, first and last layer
            need another optimizer: pass both in a list.
                hidden, rest = Muon.split(net)
                optimizer = [Muon(hidden, lr=0.03), torch.optim.AdamW(rest, lr=6e-3)]

            Source: Jordan et al., "Muon: an optimizer for hidden layers", 2024.

            Class Path:   SegStudio  ->  SemanticSegmentation  ->  Muon
            """

            def __init__(self, params, lr: float = 0.03, momentum: float = 0.9):
                super().__init__(params, {"lr": lr, "momentum": momentum})

            @staticmethod
            def split(net: nn.Module) -> tuple[list, list]:
                """The kernels of the hidden convolutions, and all other parameters of a network.

                Parameters with requires_grad=False are left out.
                """
                used = [p for p in net.parameters() if p.requires_grad]
                hidden = [p for p in used if p.ndim == 4][1:-1]  # not the first, not the last layer
                ids = {id(p) for p in hidden}
                return hidden, [p for p in used if id(p) not in ids]

            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        if p.grad is None:  # a layer that the loss does not depend on
                            continue
                        if not self.state[p]:
                            self.state[p]["velocity"] = torch.zeros_like(p)
                        velocity = self.state[p]["velocity"]
                        velocity.mul_(group["momentum"]).add_(p.grad)
                        step = p.grad + group["momentum"] * velocity  # Nesterov: look ahead
                        matrix = step.flatten(1)  # (out, in * 3 * 3)
                        scale = max(1, matrix.shape[0] / matrix.shape[1]) ** 0.5
                        p -= group["lr"] * scale * self.orthogonalize(matrix).view_as(p)

            @staticmethod
            def orthogonalize(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
                """Newton-Schulz: a polynomial that moves all singular values close to 1."""
                a, b, c = 3.4445, -4.7750, 2.0315
                tall = matrix.shape[0] > matrix.shape[1]
                x = matrix.T if tall else matrix
                x = x / (x.norm() + 1e-7)
                for _ in range(steps):
                    s = x @ x.T
                    x = a * x + (b * s + c * s @ s) @ x
                return x.T if tall else x

        def training_loop(
            self,
            net: nn.Module,
            loader: DataLoader,
            criterion: nn.Module,
            optimizer: torch.optim.Optimizer,
            recorder: "TrainingRecorder",
            *,
            scheduler: Any = None,
            augment: Callable | None = None,
            clip_grad_norm: float | None = None,
            bf16: bool = False,
        ) -> None:
            """The epoch loop, the batch loop and the training step.

            Each step moves every weight a little against the gradient of the loss of one batch.
            The recorder does the bookkeeping: it counts the epochs, and after each step it keeps
            the loss, logs, evaluates, saves and decides whether the training is finished.
            """
            device = self.dl_studio.device
            for _ in recorder.epochs():
                for batch in loader:
                    images = batch["image"].to(device)  # (N, 3, H, W), 0..255
                    masks = batch["mask_tensor"].to(device).float()  # (N, C, H, W), 0 or mask value
                    if expects_logits(criterion):
                        masks = (masks > 0).float()  # 0 or 1
                    if augment is not None:
                        images, masks = augment(images, masks)
                    with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        output = net(images)  # (N, C, H, W)
                    loss = criterion(output.float(), masks)
                    optimizer.zero_grad()
                    loss.backward()
                    if clip_grad_norm is not None:
                        nn.utils.clip_grad_norm_(net.parameters(), clip_grad_norm)
                    optimizer.step()
                    if scheduler is not None:
                        scheduler.step()
                    recorder.after_step(loss, output, masks)
                    if recorder.finished:
                        break

        def run_code_for_training_for_semantic_segmentation(
            self, net: nn.Module, **options: Any
        ) -> "TrainingHistory":
            """Train with the mean squared error, as DLStudio does; returns the TrainingHistory.

            The options are those of custom_run_code_for_training_for_semantic_segmentation.
            """
            return self.custom_run_code_for_training_for_semantic_segmentation(net, **options)

        def custom_run_code_for_training_for_semantic_segmentation(
            self,
            net: nn.Module,
            loss_type: str = "MSE",
            dice_scale: float = 1.0,
            *,
            criterion: nn.Module | None = None,
            dice_form: str = "squared",
            optimizer: Any = None,
            scheduler: Any = None,
            augment: Callable | None = None,
            clip_grad_norm: float | None = None,
            precision: str = "fp32",
            channels_last: bool = False,
            max_seconds: float | None = None,
            log_every: int = 500,
            on_log: Callable | None = None,
            evaluate_every: int | None = None,
            evaluate_on: Dataset | float | None = None,
            resume: bool = False,
        ) -> "TrainingHistory":
            """Train `net` on self.train_dataloader with a loss of your choice, and save it.

            Args:
                loss_type: "MSE", "MAE", "Dice", "Combined" (MSE + dice_scale * Dice), "MAE+Dice"
                    or "BCEDice".
                dice_scale: factor on the Dice term of the combined losses.
                criterion: a loss module of your own, instead of a name; it is called with (output,
                    mask). If it expects logits and masks of 0 and 1, it has `logits = True`.
                dice_form: the form of "Dice": "squared", "linear" or "pixelwise".
                optimizer: a torch optimizer, a list of them (each with its own parameters), or a
                    function that makes one from the parameters, such as
                    functools.partial(torch.optim.AdamW, lr=1e-3). None: SGD, as in the settings.
                scheduler: a torch scheduler, stepped after each iteration; or a function from the
                    fraction of training done (0 to 1) to a factor on the learning rate.
                augment: a function of a batch (images, masks) that returns a changed batch.
                clip_grad_norm: the largest norm of a gradient; larger gradients are scaled down.
                precision: "fp32", "bf16", or "auto": bf16 if the device has it in hardware.
                channels_last: use the memory order in which convolutions are faster.
                max_seconds: train for this time (evaluations not counted) instead of epochs.
                log_every: iterations between two lines of the log, by default 500 as in DLStudio.
                on_log: a function, called with (history, net) after each line of the log.
                evaluate_every: iterations between two evaluations. They do not change the training.
                evaluate_on: the Dataset to evaluate on, or a share of the training images, which is
                    then left out of training. None: self.dataserver_validation.
                resume: continue from checkpoint.pt in the run's folder, if there is one.

            Returns: TrainingHistory. The weights are in model.pt, and in path_saved_model if set.

            Errors: ValueError for an impossible argument. FloatingPointError, with the iteration,
            if the loss is not finite; then no model is saved.

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            dls = self.dl_studio
            if criterion is None:
                criterion = self.make_loss(loss_type, dice_scale, dice_form)
            loader, evaluate = self.train_dataloader, None
            if evaluate_every is not None:
                loader, evaluation_loader = evaluation_split(self, evaluate_on)

                def evaluate():
                    return self.score(net, evaluation_loader)

            bf16 = use_bf16(precision, dls.device)
            criterion.to(dls.device)
            net.to(dls.device, memory_format=MEMORY_FORMATS[channels_last])
            # train() would also switch layers that a script has frozen in eval mode.
            if not net.training:
                net.train()
            optimizer = make_optimizer(optimizer, net, dls)
            recorder = TrainingRecorder(
                dls,
                net,
                criterion,
                optimizer,
                loader,
                max_seconds=max_seconds,
                log_every=log_every,
                on_log=on_log,
                evaluate_every=evaluate_every,
                evaluate=evaluate,
                order=self.order if loader.generator is self.order else None,
            )
            scheduler = make_scheduler(scheduler, optimizer, recorder)
            spec = self.data_spec() | {"logits": expects_logits(criterion)}
            facts = training_facts(dls, recorder, spec, scheduler, augment, clip_grad_norm, bf16)
            recorder.begin(scheduler, facts, resume)
            net.output_spec = spec
            self.training_loop(
                net, loader, criterion, optimizer, recorder, scheduler=scheduler,
                augment=augment, clip_grad_norm=clip_grad_norm, bf16=bf16,
            )  # fmt: skip
            self.save_model(net)
            recorder.end(facts)
            self.save_loss_figure(recorder.history)
            return recorder.history

        def make_loss(self, loss_type: str, dice_scale: float, dice_form: str) -> nn.Module:
            """The loss that DLStudio, the report or the handout call by this name."""
            if not isinstance(loss_type, str):
                raise ValueError(f"loss_type is a name; pass {loss_type!r} as criterion=")
            match loss_type.lower():
                case "mse":
                    return self.SegmentationLossMSE()
                case "mae":
                    return self.SegmentationLossMAE()
                case "dice":
                    return self.SegmentationLossDice(form=dice_form)
                case "combined":
                    return self.SegmentationLossComb(dice_scale=dice_scale)
                case "mae+dice":
                    return self.SegmentationLossComb(dice_scale=dice_scale, base="mae")
                case "bcedice":
                    return self.SegmentationLossBCEDice()
            raise ValueError(
                f'loss_type is "MSE", "MAE", "Dice", "Combined", "MAE+Dice" or "BCEDice", not '
                f"{loss_type!r}; pass a loss of your own as criterion="
            )

        def save_model(self, model: nn.Module) -> None:
            """Write the weights to model.pt of the run and, if it is set, to path_saved_model.

            The state dict's metadata holds model.output_spec, which says how to read the output.
            DLStudio and load_state_dict ignore it.
            """
            state = model.state_dict()
            if getattr(model, "output_spec", None) is not None:
                state._metadata[""]["output_spec"] = model.output_spec
            paths = [self.dl_studio.run_dir / "model.pt"]
            if self.dl_studio.path_saved_model is not None:
                paths.append(Path(self.dl_studio.path_saved_model).expanduser())
            for path in paths:
                self.dl_studio.write_atomically(path, lambda part: torch.save(state, part))

        # ==== §6 TESTING AND PREDICTING ==========================================================

        def infer(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
            """The output (N, C, H, W) of `net` for images (N, 3, H, W), in eval mode.

            In train mode BatchNorm would use the statistics of the batch, so an output would depend
            on the other images, and it would change the running averages.
            """
            net.to(self.dl_studio.device)
            with eval_mode(net), torch.no_grad():
                return net(images.to(self.dl_studio.device)).float()

        def data_spec(self) -> dict:
            """How to read an output, as far as the data tells: class names and mask values."""
            loader = loader_at_hand(self)
            dataset = None if loader is None else innermost(loader.dataset)
            names = getattr(dataset, "class_names", self.dl_studio.class_labels)
            return {
                "class_names": list(names),
                "mask_values": find_mask_values(loader, len(names)),
                "logits": False,
                "image_size": list(self.dl_studio.image_size),
            }

        def output_spec_of(self, net: nn.Module) -> dict:
            """How to read the output of `net`: its output_spec from training, else data_spec()."""
            return getattr(net, "output_spec", None) or self.data_spec()

        def binarize(
            self, net: nn.Module, output: torch.Tensor, spec: dict | None = None
        ) -> torch.Tensor:
            """The pred of an output (N, C, H, W): True where it is above the threshold.

            The threshold is half the mask value; for logits it is 0, a probability of one half. A
            caller that has output_spec_of(net) already can pass it as `spec`.
            """
            spec = spec or self.output_spec_of(net)
            values = torch.tensor(spec["mask_values"], device=output.device)
            threshold = torch.zeros_like(values) if spec["logits"] else values / 2
            return output > threshold[:, None, None]

        def to_mask_values(self, net: nn.Module, output: torch.Tensor) -> torch.Tensor:
            """An output on the scale of the masks: a logit becomes probability * mask value."""
            spec = self.output_spec_of(net)
            if not spec["logits"]:
                return output
            values = torch.tensor(spec["mask_values"], device=output.device).float()
            return torch.sigmoid(output) * values[:, None, None]

        def score(
            self,
            net: nn.Module,
            dataloader: DataLoader | None = None,
            on_batch: Callable | None = None,
        ) -> "SegStudio.SemanticSegmentation.SegmentationScores":
            """Score `net` on every image of a loader, by default the test images.

            on_batch(number, batch, output, pred, ious) is called for each batch, with the output
            and pred (N, C, H, W) and the mean IoU of each image (N,). Scoring does not change the
            training: weights, modes of the layers and random numbers stay as they were.
            """
            dataloader = self.test_dataloader if dataloader is None else dataloader
            spec = self.output_spec_of(net)
            class_names = spec["class_names"]
            if len(spec["mask_values"]) == 1:  # one channel: the data has the classes
                class_names = getattr(innermost(dataloader.dataset), "class_names", class_names)
            scores = self.SegmentationScores(class_names)
            with random_numbers_kept():
                for number, batch in enumerate(
                    tqdm(dataloader, desc="scoring", disable=None, leave=False)
                ):
                    output = self.infer(net, batch["image"])  # (N, C, H, W)
                    pred = self.binarize(net, output, spec)
                    mask = batch["mask_tensor"].to(pred.device) > 0
                    ious = scores.update(pred, mask, batch.get("category"))
                    if on_batch is not None:
                        on_batch(number, batch, output.cpu(), pred.cpu(), ious)
            return scores

        def score_baselines(self) -> dict:
            """{name: scores} of two baselines that ignore the image; a network should beat both.

            "all foreground" sets every pixel; "mean training mask" sets the pixels that are set in
            more than half of the training masks.
            """
            total, count = 0.0, 0
            with random_numbers_kept():
                for batch in self.train_dataloader:
                    total = total + (batch["mask_tensor"] > 0).double().sum(dim=0)  # (C, H, W)
                    count += len(batch["mask_tensor"])
            share = total / count
            values = torch.tensor(self.data_spec()["mask_values"])[:, None, None]
            answers = {"all foreground": torch.ones_like(share), "mean training mask": share}
            return {n: self.score(self.ConstantMask(m * values)) for n, m in answers.items()}

        def run_code_for_testing_semantic_segmentation(
            self,
            net: nn.Module,
            *,
            before=None,
            baselines: Mapping | None = None,
            show_every: int = 50,
        ):
            """Load the saved weights, score every test image, and draw predictions.

            Prints the score table. Writes metrics.json, a picture of every `show_every`-th test
            batch as in DLStudio, and a picture of the four images with the lowest mean IoU.

            Args:
                before: SegmentationScores on the same images to print beside these, for example
                    those of the untrained network.
                baselines: {name: SegmentationScores}, printed and saved as well.

            Returns: SegmentationScores.

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            dls = self.dl_studio
            self.load_model(net)
            worst = []  # (mean IoU, number of the image, its item, its pred)
            seen = 0

            def draw(number, batch, output, pred, ious):
                nonlocal seen
                if number % show_every == 0:
                    dls.log(f"Showing output for test batch {number + 1}")
                    self.save_test_figure(net, batch, output, number + 1)
                for row, iou in enumerate(ious.tolist()):
                    if not math.isnan(iou):
                        item = {key: value[row] for key, value in batch.items()}
                        worst.append((iou, seen + row, item, pred[row]))
                seen += len(ious)
                worst.sort(key=lambda entry: entry[:2])
                del worst[4:]

            scores = self.score(net, on_batch=draw)
            dls.log(f"\nScores on {scores.images} test images:\n{scores.table(before)}")
            metrics = scores.compute()
            if before is not None:
                metrics["before"] = before.compute()
            for name, baseline in (baselines or {}).items():
                dls.log(f"\nFor comparison, {name}:\n{baseline}")
                metrics.setdefault("baselines", {})[name] = baseline.compute()
            dls.write_json("metrics.json", metrics)
            if worst:
                self.save_worst_figure(worst)
            return scores

        def predict_image(self, net: nn.Module, image: Image.Image) -> torch.Tensor:
            """The predicted masks of one PIL image of any size and mode, in the image's size.

            The image is resized to the size that the network was trained with, and the masks are
            resized back. Shape: returns (C, H, W) of True and False.
            """
            pixels = v2.functional.pil_to_tensor(image.convert("RGB"))  # (3, H, W)
            size = self.output_spec_of(net)["image_size"]
            small = v2.functional.resize(pixels, size, antialias=True)
            output = self.infer(net, small[None].float())
            pred = self.binarize(net, output).cpu()[0]  # (C, h, w)
            nearest = v2.InterpolationMode.NEAREST
            return v2.functional.resize(pred, list(pixels.shape[1:]), interpolation=nearest)

        def load_model(self, net: nn.Module, path=None) -> nn.Module:
            """Load saved weights into `net`: path, else path_saved_model, else the run's model.pt.

            Errors: FileNotFoundError; ValueError for the weights of another network.
            """
            path = path or self.dl_studio.path_saved_model or self.dl_studio.run_dir / "model.pt"
            path = Path(path).expanduser()
            if not path.exists():
                raise FileNotFoundError(f"no saved model at {path.absolute()}: train first")
            state = read_state_dict(path, net, self.dl_studio.device)
            net.load_state_dict(state)
            metadata = getattr(state, "_metadata", {}).get("", {})
            if "output_spec" in metadata:
                net.output_spec = metadata["output_spec"]
            return net

        def load_run(self, run) -> nn.Module:
            """The trained network of a run's folder, built as settings.json says.

            Errors: FileNotFoundError for a folder that is not a finished run; ValueError for a
            damaged run or a network that is not in this package.
            """
            run = Path(run).expanduser()
            network, arguments = read_network_settings(run)
            networks = {"mUnet": self.mUnet, "UNet": self.UNet}
            if network not in networks or arguments is None:
                raise ValueError(
                    f"{run.absolute()} holds a {network}, which is not a network of this package: "
                    f"build it in a script of your own and use load_model"
                )
            try:
                net = networks[network](**arguments)
            except TypeError as error:  # a run of version 1, whose mUnet had other arguments
                raise ValueError(f"{run.absolute()} is of another version: {error}") from None
            return self.load_model(net, run / "model.pt")

        # ==== §7 FIGURES =========================================================================

        @staticmethod
        def make_test_grid(
            images: torch.Tensor, boxes: torch.Tensor, output: torch.Tensor
        ) -> torch.Tensor:
            """DLStudio's test picture as one tensor: 7 rows of N images each, for 5 channels.

            Row 1: the largest output over the channels, with the true boxes in white; row 2: the
            images with the boxes in red; then one row per channel: 255 where the output lies in
            DLStudio's window around the mask value, 50 elsewhere.

            Shape: images (N, 3, H, W) 0..255, boxes (N, n, C, 4), output (N, C, H, W) on the scale
            of the masks -> (3, rows of H + 2, N columns of W + 2), 0..1.
            """
            windows = ((25, 85), (65, 135), (115, 185), (165, 230), (210, math.inf))
            n, channels, height, width = output.shape
            output = output.detach().double()
            brightest = output.amax(dim=1, keepdim=True)  # (N, 1, H, W)
            images = images.double().clone()
            for row, box_row in enumerate(boxes.reshape(n, -1, 4).long().tolist()):
                for x1, y1, x2, y2 in box_row:
                    if x1 == x2 and y1 == y2:
                        continue  # zeros: there is no box
                    for plane in (brightest[row, 0], images[row, 0]):
                        plane[y1:y2, x1] = 255
                        plane[y1:y2, x2] = 255
                        plane[y1, x1:x2] = 255
                        plane[y2, x1:x2] = 255
            rows = [brightest.expand(-1, 3, -1, -1), images]
            for channel in range(channels):
                low, high = windows[channel % len(windows)]
                plane = output[:, channel : channel + 1]
                inside = (plane > low) & (plane < high)  # (N, 1, H, W)
                rows.append(torch.where(inside, 255.0, 50.0).expand(-1, 3, -1, -1))
            return torchvision.utils.make_grid(
                torch.cat(rows), nrow=n, normalize=True, padding=2, pad_value=10
            )

        def save_test_figure(
            self, net: nn.Module, batch: Mapping, output: torch.Tensor, number: int
        ) -> Path:
            """Draw one test batch as DLStudio does, with the rows labelled."""
            name = f"test-batch-{number:03d}.png"
            spec = self.output_spec_of(net)
            class_names = spec["class_names"]
            batch = {key: value[:8] for key, value in batch.items()}  # more are too small to see
            output = output[:8]
            if output.shape[1] != len(class_names) or "bbox_tensor" not in batch:
                return self.save_panel_figure(batch, self.binarize(net, output), name)
            grid = self.make_test_grid(
                batch["image"], batch["bbox_tensor"], self.to_mask_values(net, output)
            )
            height = batch["image"].shape[2] + 2
            rows = ["largest output", "input, true boxes", *(f"{k} channel" for k in class_names)]
            figure = self.dl_studio.new_figure(
                figsize=(2 + 1.1 * len(output), 1.1 * len(rows) + 0.8), dpi=100
            )
            axes = figure.add_subplot()
            axes.imshow(grid.permute(1, 2, 0).clamp(0, 1).numpy())
            axes.set_xticks([])
            axes.set_yticks([height * (k + 0.5) for k in range(len(rows))], rows)
            axes.tick_params(length=0)
            axes.set_title(f"Test batch {number}", loc="left")
            axes.set_xlabel(
                "A channel is white where its output lies in DLStudio's\n"
                "window around the class's mask value, dark elsewhere.",
                fontsize=9,
            )
            return self.dl_studio.save_figure(figure, name)

        @staticmethod
        def overlay(
            image: torch.Tensor, masks: torch.Tensor, colors: Sequence[str] | None = None
        ) -> torch.Tensor:
            """The image in grey, with each mask as a tint and an outline in the class's colour.

            Shape: image (3, H, W) 0..255, masks (C, H, W) bool -> (3, H, W) uint8.
            """
            palette = SegStudio.PALETTE
            colors = colors or [palette[k % len(palette)] for k in range(len(masks))]
            grey = image.clamp(0, 255).mean(dim=0, keepdim=True).expand(3, -1, -1)
            picture = grey.byte()
            for mask, color in zip(masks, colors, strict=True):  # at once, overlaps would be black
                picture = torchvision.utils.draw_segmentation_masks(
                    picture, mask, alpha=0.5, colors=[color]
                )
            for mask, color in zip(masks.numpy(), colors, strict=True):
                edge = skimage.segmentation.find_boundaries(mask, mode="inner")
                picture[:, torch.from_numpy(edge)] = rgb(color)[:, None]
            return picture

        def save_panel_figure(
            self,
            batch: Mapping,
            preds: torch.Tensor,
            name: str,
            *,
            class_names: Sequence[str] | None = None,
            titles: Sequence[str] | None = None,
            heading: str | None = None,
        ) -> Path:
            """One row per image: image, true masks, predicted masks, with classes in colours."""
            class_names = class_names or self.data_spec()["class_names"]
            truths = batch["mask_tensor"] > 0
            count = len(preds)
            figure = self.dl_studio.new_figure(
                figsize=(6.6, 2.1 * count + 0.9), dpi=120, layout="constrained"
            )
            grid = figure.subplots(count, 3, squeeze=False)
            for row in range(count):
                image = batch["image"][row]
                pictures = {
                    "image": image.byte(),
                    "truth": self.overlay(image, truths[row]),
                    "prediction": self.overlay(image, preds[row]),
                }
                for axes, (title, picture) in zip(grid[row], pictures.items(), strict=True):
                    axes.imshow(picture.permute(1, 2, 0).numpy())
                    axes.set_xticks([])
                    axes.set_yticks([])
                    if row == 0:
                        axes.set_title(title)
                if titles is not None:
                    grid[row][0].set_ylabel(titles[row])
                elif "category" in batch:
                    grid[row][0].set_ylabel(class_names[int(batch["category"][row])])
            if preds.shape[1] == len(class_names):
                palette = SegStudio.PALETTE
                patches = [
                    Patch(color=palette[k % len(palette)], label=label)
                    for k, label in enumerate(class_names)
                ]
                figure.legend(handles=patches, loc="outside lower center", ncols=len(class_names))
            if heading:
                figure.suptitle(heading)
            return self.dl_studio.save_figure(figure, name)

        def save_worst_figure(self, worst: list) -> Path:
            """The test images with the lowest mean IoU, with their true and predicted masks."""
            ious, image_numbers, items, preds = zip(*worst, strict=True)
            batch = {
                key: torch.stack([item[key] for item in items]) for key in ("image", "mask_tensor")
            }
            titles = [
                f"image {number}\nIoU {iou:.2f}"
                for number, iou in zip(image_numbers, ious, strict=True)
            ]
            return self.save_panel_figure(
                batch,
                torch.stack(preds),
                "worst.png",
                titles=titles,
                heading="The test images with the lowest IoU",
            )

        def save_loss_figure(self, history: "TrainingHistory") -> Path:
            """The training loss, and each of its terms, over the iterations."""
            palette = SegStudio.PALETTE
            figure = self.dl_studio.new_figure(figsize=(7, 4.2), dpi=120, layout="constrained")
            axes = figure.add_subplot()
            iterations, losses = zip(*history.column("loss"), strict=True)
            axes.plot(iterations, losses, marker=".", color=palette[0], label=history.loss_name)
            terms = [name for name in ("mse", "mae", "bce", "dice") if history.column(name)]
            for color, term in zip(palette[1:], terms, strict=False):
                points = zip(*history.column(term), strict=True)
                axes.plot(*points, color=color, linestyle="--", label=f"{term} term")
            axes.set_xlabel("iteration")
            axes.set_ylabel(f"{history.loss_name} loss, mean of each interval")
            axes.set_title(f"Training loss: {history.loss_name}")
            axes.grid(alpha=0.3)
            figure.legend(loc="outside lower center", ncols=3)  # inside, it hides a curve
            return self.dl_studio.save_figure(figure, "loss.png")

        @staticmethod
        def probe_output_coverage(
            net: nn.Module, image_size: Sequence[int], *, in_channels: int = 3, probes: int = 8
        ) -> tuple:
            """Find the output pixels that depend on the input.

            Feeds random images to any segmentation network in eval mode and marks the output
            pixels that change. A pixel that never changes is a constant of the network: no loss and
            no training can correct it. In DLStudio's mUnet these are three pixels in four.

            Shape: image_size (H, W); the map is (H', W') of the network's output.
            Returns: a named tuple: fraction (float), map (bool tensor), picture (uint8 tensor
            (3, 8H', 8W'): pixels that change in blue, constant ones in orange).
            """
            device = next((p.device for p in net.parameters()), torch.device("cpu"))
            generator = torch.Generator().manual_seed(0)
            outputs = []
            with eval_mode(net), torch.no_grad():
                for _ in range(probes):
                    image = torch.rand(1, in_channels, *image_size, generator=generator) * 255
                    output = net(image.to(device))
                    output = output["out"] if isinstance(output, Mapping) else output
                    outputs.append(output[0].cpu())
            outputs = torch.stack(outputs)  # (probes, C, H', W')
            reached = (outputs != outputs[0]).any(dim=0).any(dim=0)  # (H', W')
            colors = torch.stack([rgb(SegStudio.PALETTE[1]), rgb(SegStudio.PALETTE[0])])
            picture = colors[reached.long()].permute(2, 0, 1)  # (3, H', W')
            picture = picture.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
            coverage = namedtuple("Coverage", "fraction map picture")
            return coverage(reached.float().mean().item(), reached, picture)

        # ==== for the examples: load data by numbers of images ===================================

        def load_shapes(
            self, train_images: int = 10000, test_images: int = 1000, validation_images: int = 0
        ) -> None:
            """Load the first `train_images` and `test_images`; draw archives that are missing.

            Validation images are extra images that SegStudio always draws. The scores during
            training use them: so training can use all training images, and only the final score
            uses the test images.
            """
            prepare_results_dir(self.dl_studio)
            train = load_shapes_archive(self, "train", train_images, sizes=(2000, 10000))
            test = load_shapes_archive(self, "test", test_images, sizes=(200, 1000))
            if validation_images:
                self.dataserver_validation = load_shapes_archive(
                    self, "validation", validation_images, sizes=(500,)
                )
            self.load_PurdueShapes5MultiObject_dataset(train, test)

        def load_coco(
            self,
            folder,
            train_images: int | None = None,
            test_images: int | None = None,
            mask_value: int = 255,
        ) -> None:
            """Load a folder that Datasets/prepare_coco.py wrote: it holds train/ and test/."""
            prepare_results_dir(self.dl_studio)
            numbers_of_images = {"train": train_images, "test": test_images}
            train, test = (
                self.CocoSingleObjectDataset(
                    self.dl_studio,
                    self,
                    split,
                    Path(folder).absolute() / split,
                    mask_value=mask_value,
                    num_images=number,
                )
                for split, number in numbers_of_images.items()
            )
            self.dl_studio.class_labels = train.class_names
            self.load_Coco_dataset(train, test)

    # ==== §8 BACKSTAGE: files and flags ==========================================================

    @staticmethod
    def write_atomically(path, write: Callable) -> Path:
        """Call write(temporary path), then rename that file to `path`: complete, or not at all."""
        return write_atomically(path, write)

    @staticmethod
    def example_flags(
        description: str,
        *,
        quick: tuple = (1200, 1),
        full: tuple = (10000, 6),
        quick_seconds: float | None = None,
        extra: Mapping | None = None,
    ) -> "argparse.Namespace":
        """Read the flags that all examples share from the command line.

        Args:
            description: the text of --help: the example's docstring.
            quick, full: (training images, epochs) with and without --quick. epochs is None if the
                example trains for a time.
            quick_seconds: --quick ends after this time, unless --epochs or --train-images is given.
            extra: further flags of this example: {"--name": keyword arguments of add_argument}.

        Returns: a namespace. epochs and train_images are filled in; `settings` holds the flags that
        are keyword arguments of SegStudio; training_seconds(trainings_left, reserve) is the time
        that the next training may take, or None if there is no limit.
        """

        def positive(text):
            if int(text) < 1:
                raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
            return int(text)

        parser = argparse.ArgumentParser(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        add = parser.add_argument
        epochs_help = f"default {full[1]}, with --quick {quick[1]}"
        if full[1] is None:
            epochs_help = "not for this example: it trains for a time"
        add("--quick", action="store_true", help="a short run that shows every step")
        add("--epochs", type=positive, metavar="N", help=epochs_help)
        images_help = f"train on the first N; default {full[0]}, with --quick {quick[0]}"
        add("--train-images", type=positive, metavar="N", help=images_help)
        add("--dataroot", metavar="DIR", help="folder of the data")
        add("--results-dir", default="runs", metavar="DIR", help="folder of all runs")
        add("--run-name", metavar="NAME", help="folder of this run in it; default: a new one")
        add("--seed", type=int, default=0, metavar="N", help="default 0")
        add("--show", action="store_true", help="open a window for each figure")
        for name, options in (extra or {}).items():
            add(name, **options)
        flags = parser.parse_args()
        if full[1] is None and flags.epochs is not None:
            parser.error("--epochs: this example trains for a time and not for epochs")

        limited = flags.quick and flags.epochs is None and flags.train_images is None
        flags.training_seconds = functools.partial(
            seconds_for_training, quick_seconds if limited else None
        )
        images, epochs = quick if flags.quick else full
        flags.train_images = flags.train_images or images
        flags.epochs = flags.epochs or epochs or 1
        names = ("epochs", "seed", "results_dir", "run_name", "show")
        flags.settings = {name: getattr(flags, name) for name in names}
        if flags.dataroot is not None:
            flags.settings["dataroot"] = flags.dataroot
        return flags

    @staticmethod
    def run_example(main: Callable) -> None:
        """Call main(); a user's mistake ends in one sentence, not in a traceback."""
        script = Path(sys.argv[0]).name
        try:
            main()
        except (OSError, ValueError, FloatingPointError) as error:
            if os.environ.get("SEGSTUDIO_TRACEBACK"):
                raise
            sys.exit(f"{script}: error: {error}")
        except KeyboardInterrupt:
            sys.exit(f"\n{script}: interrupted")


# ==== §8 BACKSTAGE ===============================================================================
# Code that the lecture needs but does not teach: reading and caching archives, drawing shapes, the
# record of a training, the flags of the examples.

import argparse
import csv
import difflib
import functools
import glob
import gzip
import hashlib
import inspect
import io
import itertools
import os
import pickle
import platform
import tempfile
from collections import defaultdict

import platformdirs
import skimage.draw

STARTED = time.perf_counter()  # the time limit of --quick counts from here


# ---- settings -----------------------------------------------------------------------------------


def refuse_unknown_settings(args, unknown):
    """ValueError for positional arguments and for keywords that SegStudio does not have."""
    valid = [
        name
        for name, parameter in inspect.signature(SegStudio.__init__).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    if args:
        raise ValueError(
            f"SegStudio takes keyword arguments only, but got {args[0]!r} without a keyword: "
            f"write for example dataroot={args[0]!r}. The keywords: {', '.join(valid)}"
        )
    for name in unknown:
        nearest = difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"SegStudio has no keyword argument {name!r}: did you mean {nearest!r}? "
            f"The keywords: {', '.join(valid)}"
        )


def check_settings(dls):
    """Check the values of a SegStudio; numpy's numbers become Python's."""
    for name in ("batch_size", "epochs"):
        value = getattr(dls, name)
        if not isinstance(value, numbers.Integral) or value < 1:
            raise ValueError(f"{name} is a whole number of 1 or more, not {value!r}")
        setattr(dls, name, int(value))
    sides = list(dls.image_size) if isinstance(dls.image_size, (list, tuple)) else []
    if len(sides) != 2 or not all(isinstance(n, numbers.Integral) and n > 0 for n in sides):
        raise ValueError(f"image_size is [height, width] in pixels, not {dls.image_size!r}")
    dls.image_size = [int(side) for side in sides]
    if not isinstance(dls.learning_rate, numbers.Real) or not dls.learning_rate > 0:
        raise ValueError(f"learning_rate is a number above 0, not {dls.learning_rate!r}")
    dls.learning_rate = float(dls.learning_rate)
    if not isinstance(dls.num_workers, numbers.Integral) or dls.num_workers < 0:
        raise ValueError(f"num_workers is 0 or more, not {dls.num_workers!r}")
    if dls.run_name == "":
        raise ValueError("run_name is a name, not '': leave it out to get one")


def make_run_dir(results, run_name):
    """Make the folder of a run: run_name, or the script's name with a number if it is taken."""
    script = Path(sys.argv[0]).stem if sys.argv and sys.argv[0] else ""
    stem = script if re.fullmatch(r"[\w-]+", script) else "session"
    numbered = (f"{stem}-{number}" for number in itertools.count(2))
    folder = results
    try:
        results.mkdir(parents=True, exist_ok=True)
        for name in [run_name] if run_name is not None else itertools.chain([stem], numbered):
            folder = results / name
            with contextlib.suppress(FileExistsError):
                folder.mkdir(parents=True, exist_ok=run_name is not None)
                break
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise OSError(
            f"the run cannot be written to {folder.absolute()} ({error.strerror}): give another "
            f"results_dir (--results-dir), or make that one writable"
        ) from None


def prepare_results_dir(dls):
    """OSError if the run cannot be written. Checked before data is drawn; makes no folder."""
    folder = Path(dls.results_dir).expanduser().absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise OSError(
            f"the run cannot be written to {folder}: give another results_dir (--results-dir), "
            f"or make that one writable"
        )


def write_atomically(path, write):
    """Call write(temporary path), then rename that file to `path`: complete, or not at all.

    A full disk or an interruption leaves the old file as it was.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write(part)
        part.replace(path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        raise OSError(f"{path.absolute()} could not be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)
    return path


def seconds_for_training(limit, trainings_left=1, reserve=15):
    """The seconds that the next training may take, so that the script keeps its time limit.

    The clock started when this module was imported. `reserve` seconds per training are kept for
    scores and figures. None: no limit.
    """
    if limit is None:
        return None
    left = limit - (time.perf_counter() - STARTED) - reserve * trainings_left
    return max(5.0, left / trainings_left)


@contextlib.contextmanager
def eval_mode(net):
    """Inside, `net` is in eval mode; afterwards every layer has its own mode again.

    net.train() would not do: it would also switch layers that a script has frozen in eval mode.
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def rgb(color):
    """A colour "#rrggbb" as a tensor of three bytes."""
    return torch.tensor(list(bytes.fromhex(color[1:])), dtype=torch.uint8)


# ---- the cache of a dataset ---------------------------------------------------------------------


class ImageCache:
    """Images, masks, boxes and categories of a dataset in one memory-mapped file.

    The operating system loads the pages that are read and drops them again, so a dataset of any
    size needs constant memory. A pickled cache is only its path: every DataLoader worker maps the
    same file instead of copying it.
    """

    def __init__(self, path, num_images=None):
        records = np.load(path, mmap_mode="r")
        whole = records.offset + records.nbytes == Path(path).stat().st_size
        if not whole or records.dtype.names != ("image", "mask", "box", "category"):
            raise ValueError(f"{path} is not a complete cache file")
        self.path = path
        self.take(records.view(np.ndarray)[:num_images])  # numpy's memmap is slower to index

    def take(self, records):
        self.images = records["image"]  # (number, 3, H, W) uint8
        self.masks = records["mask"]  # (number, C, H, W) uint8
        self.boxes = records["box"]  # (number, boxes, C, 4) int16
        self.categories = records["category"]  # (number,) int16

    def __len__(self):
        return len(self.images)

    def __reduce__(self):
        return type(self), (self.path, len(self))

    @staticmethod
    def record_type(classes, height, width, boxes):
        return np.dtype([
            ("image", "u1", (3, height, width)),
            ("mask", "u1", (classes, height, width)),
            ("box", "i2", (boxes, classes, 4)),
            ("category", "i2"),
        ])  # fmt: skip


class MemoryCache(ImageCache):
    """An ImageCache without a file, for items that a script assigns itself."""

    def __init__(self, records):
        self.records = records
        self.take(records)

    def __reduce__(self):
        return type(self), (self.records,)


def open_cache(source, content, num_images, read_records):
    """The ImageCache of the data at the path `source`, beside it or in the user's cache folder.

    The file's name holds a hash of `content`, bytes that change with the data, so a cache never
    belongs to other data. If there is no complete cache, it is made from read_records(), which
    returns the number of records, their type and an iterator over them.
    """
    folder = source.parent
    name = f"{source.name}.v3-{short_hash(content)}.cache.npy"
    # Data with the same name in two folders gets two caches.
    user_folder = Path(platformdirs.user_cache_dir("segstudio"))
    places = [folder / name, user_folder / short_hash(bytes(folder.resolve())) / name]
    for path in places:
        with contextlib.suppress(OSError, ValueError, EOFError):
            return ImageCache(path, num_images)
    print(f"First use of {source}: writing a cache file ...")
    for path in places:
        number, record_type, records = read_records()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, functools.partial(write_records, number, record_type, records))
        except OSError as error:
            problem = error
            continue
        for old in path.parent.glob(f"{glob.escape(source.name)}.v*.cache.npy"):
            if old != path:
                with contextlib.suppress(OSError):
                    old.unlink()
        return ImageCache(path, num_images)
    size = number * record_type.itemsize / 1e6
    raise OSError(
        f"the cache of {source} cannot be written ({problem}): make room for {size:.0f} MB "
        f"beside it, or set XDG_CACHE_HOME to a folder with room"
    )


def short_hash(content):
    return hashlib.sha256(content).hexdigest()[:16]


def write_records(number, record_type, records, path):
    """Write a .npy file record by record: a memory-mapped file would crash on a full disk."""
    header = {"descr": record_type.descr, "fortran_order": False, "shape": (number,)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for record in records:
            file.write(record.tobytes())
        file.flush()
        os.fsync(file.fileno())


# ---- archives of shapes -------------------------------------------------------------------------

LABEL_MAP = {"rectangle": 50, "triangle": 100, "disk": 150, "oval": 200, "star": 250}
SHAPES = ImageCache.record_type(classes=5, height=64, width=64, boxes=5)


class NumberType:
    """Stands in for numpy.dtype while an archive is read: the type of an array of numbers.

    numpy.dtype also has the type "Python object", whose bytes are pointers. A hostile archive could
    choose these pointers.
    """

    def __init__(self, name, *_):
        if not isinstance(name, str) or np.dtype(name).kind not in "biuf":
            raise ValueError(f"it has an array of {name!r}, which is not a type of numbers")
        self.dtype = np.dtype(name)

    def __setstate__(self, state):
        self.dtype = self.dtype.newbyteorder(state[1])


class NumberArray(np.ndarray):
    """An array of numbers: it takes its state from a pickle with a NumberType."""

    def __setstate__(self, state):
        version, shape, number_type, is_fortran, data = state
        super().__setstate__((version, shape, number_type.dtype, is_fortran, data))


def array_from_buffer(data, number_type, *layout):
    # numpy moved this function between its versions, so it is taken from an array.
    numpy_function = np.zeros(1).__reduce_ex__(5)[0]
    return numpy_function(data, number_type.dtype, *layout)


def make_scalar(number_type, data):
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's
    return np.frombuffer(data, number_type.dtype)[0]


class ArchiveUnpickler(pickle.Unpickler):
    """Reads a pickle of containers, numbers, strings and arrays of numbers, and nothing else.

    A pickle is a program, and loading it runs it: one line of it could delete your files. This
    reader refuses every function that such data does not need. A hostile archive can still
    use up memory or time; it cannot run code.
    """

    ALLOWED = {
        "_reconstruct": lambda *_: NumberArray(0),  # its __setstate__ follows
        "_frombuffer": array_from_buffer,
        "scalar": make_scalar,
        "ndarray": None,  # only named, as an argument of _reconstruct
        "dtype": lambda *args: NumberType(*args),  # not the class: a pickle could change it
        "encode": lambda text, encoding: text.encode("latin1"),  # bytes in protocol 2
        **{kind.__name__: kind for kind in (bytes, bytearray, set, frozenset, list, dict, tuple)},
    }
    MODULES = ("numpy", "numpy.core", "numpy._core", "builtins", "__builtin__", "_codecs")

    def find_class(self, module, name):
        package = module.removesuffix(".multiarray").removesuffix(".numeric")
        if package not in self.MODULES or name not in self.ALLOWED:
            raise ValueError(f"it calls {module}.{name}, which no data needs")
        return self.ALLOWED[name]


def find_archive(dl_studio, dataset_file):
    """The path of an archive of shapes, dataroot/dataset_file, of images of 64x64."""
    # DLStudio joins both as text, so dataroot may end with the beginning of the file name.
    root = Path(dl_studio.dataroot).expanduser()
    archive = root / dataset_file
    joined = Path(f"{root}{dataset_file}")
    if not archive.is_file() and joined.is_file():
        archive = joined
    if not archive.is_file():
        raise FileNotFoundError(
            f"{archive} is not there: take it from datasets_for_DLStudio.tar.gz of Avinash Kak's "
            f"page (https://engineering.purdue.edu/kak/distDLS), or draw such images with "
            f"python Datasets/make_purdue_shapes.py --out '{archive}' (in a script: "
            f"PurdueShapes5MultiObjectDataset.generate)"
        )
    if list(dl_studio.image_size) != [64, 64]:
        raise ValueError(f"image_size is {dl_studio.image_size}, but these images are [64, 64]")
    return archive


def open_archive(archive, num_images=None):
    """(the ImageCache of an archive of shapes, whether SegStudio drew it)."""
    data = archive.read_bytes()
    generated = GENERATED.encode() in data[:64]  # the file name in the header of the gzip
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images is {num_images}; it must be 1 or more")
    cache = open_cache(archive, data, num_images, lambda: read_archive(archive, data))
    if num_images is not None and len(cache) < num_images:
        raise ValueError(f"num_images is {num_images}, but {archive} has {len(cache)}")
    return cache, generated


def read_archive(archive, data):
    """The items of an archive as records: their number, their type, and the records one by one."""
    limit = 2**26 + 500 * len(data)  # images compress less than that: more is a gzip bomb
    try:
        with gzip.open(io.BytesIO(data)) as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError(f"it unpacks to more than {limit} bytes")
        # encoding: archives of Python 2 hold bytes as text
        items, label_map = ArchiveUnpickler(io.BytesIO(content), encoding="latin1").load()
        if label_map != LABEL_MAP:
            raise ValueError(f"its label_map is not {LABEL_MAP}")
        if len(items) == 0:
            raise ValueError("it has no images")
        if isinstance(items, dict) and items.keys() != set(range(len(items))):
            raise ValueError("its images are not numbered 0, 1, 2, ...")
    except ValueError as error:
        raise ValueError(f"{archive} is refused: {error}") from error
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(
            f"{archive} is not a complete gzip of a pickle of [dataset, label_map] "
            f"({type(error).__name__}: {error}): download it again"
        ) from error

    def records():
        for index in range(len(items)):
            try:
                yield pack_item(items[index])
            except Exception as error:
                raise ValueError(f"{archive}, item {index}: {error}") from error

    return len(items), SHAPES, records()


def pack_item(item):
    """An item [R, G, B, mask_array, bbox_map] as a record; ValueError if it is not valid."""
    if not isinstance(item, (list, tuple)) or len(item) != 5:
        raise ValueError("it is not a list [R, G, B, mask_array, bbox_map]")
    *channels, mask, box_map = item
    record = np.zeros((), SHAPES)
    for k, channel in enumerate(channels):
        record["image"][k] = read_bytes(channel, f"channel {'RGB'[k]}")
    if len(mask) != 5:
        raise ValueError(f"its mask has {len(mask)} planes instead of 5")
    values = tuple(LABEL_MAP.values())
    for k, value in enumerate(values):
        plane = record["mask"][k] = read_bytes(mask[k], f"mask plane {k}")
        if not np.isin(plane, (0, value)).all():
            raise ValueError(f"mask plane {k} has values other than 0 and {value}")
    for key, boxes in box_map.items():
        if key not in (*range(5), *values):
            raise ValueError(f"bbox_map has keys other than 0..4 and {values}")
        boxes = np.asarray(boxes)
        if boxes.size == 0:
            continue
        if boxes.ndim != 2 or len(boxes) > 5 or boxes.shape[1] != 4:
            raise ValueError(f"bbox_map[{key}] is not up to 5 boxes of 4 numbers")
        if not np.isin(boxes, range(64)).all():
            raise ValueError(f"bbox_map[{key}] has a corner that is not a pixel")
        k = key if key in range(5) else values.index(key)
        record["box"][: len(boxes), k] = boxes
    return record


def read_bytes(values, name):
    """64x64 whole numbers 0..255 as an array; they come as a list, a list of rows or an array."""
    try:
        if isinstance(values, (list, tuple)):
            rows = values if isinstance(values[0], (list, tuple)) else [values]
            # bytes() is fast, and it refuses all but whole numbers 0..255.
            return np.frombuffer(b"".join(map(bytes, rows)), np.uint8).reshape(64, 64)
        with np.errstate(invalid="ignore"):
            plane = np.asarray(values).astype(np.uint8)
        if not np.array_equal(plane, values):
            raise ValueError("numbers out of range")
        return plane.reshape(64, 64)
    except Exception as error:
        raise ValueError(f"{name} is not 64x64 whole numbers 0..255 ({error})") from error


class ArchiveItems(Mapping):
    """The images of a cache in the archive's own form: {index: [R, G, B, mask_array, bbox_map]}."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return len(self.cache)

    def __iter__(self):
        return iter(range(len(self)))

    def __getitem__(self, index):
        red, green, blue = self.cache.images[index].reshape(3, -1).tolist()
        boxes = self.cache.boxes[index]  # (5, 5, 4)
        box_map = {k: boxes[boxes[:, k].any(axis=1), k].tolist() for k in range(5)}
        return [red, green, blue, self.cache.masks[index].copy(), box_map]


def pack_items(items):
    """A cache in memory of items in the archive's form: a dict {index: item}, or a list."""
    items = [items[index] for index in range(len(items))]
    return MemoryCache(np.stack([pack_item(item) for item in items]))


# ---- drawing shapes -----------------------------------------------------------------------------

GENERATED = "generated by SegStudio"


def load_shapes_archive(segmenter, part, number, sizes):
    """The first `number` images of one part of the shapes; its archive is drawn if it is missing.

    Small sets come from small archives, so that a first run starts at once.
    """
    dls = segmenter.dl_studio
    names = {
        f"PurdueShapes5MultiObject-{size}-{part}.gz": size
        for size in [size for size in sizes if size >= number] or [number]
    }
    at_hand = [name for name in names if Path(dls.dataroot, name).expanduser().is_file()]
    archive = [*at_hand, *names][0]  # the smallest at hand, else a new small one
    make = segmenter.PurdueShapes5MultiObjectDataset
    make.find_or_generate(dls.dataroot, archive)
    # An archive of the wanted size may have fewer test images than its name says.
    exact = part == "train" or names[archive] > number
    return make(
        dl_studio=dls,
        segmenter=segmenter,
        train_or_test=part,
        dataset_file=archive,
        num_images=number if exact else None,
    )


def find_or_generate_archive(archive, seed):
    """The path of the archive; if it is missing, draw the number of images that its name says."""
    if archive.is_file():
        return archive
    counts = [int(part) for part in archive.stem.split("-") if part.isdigit()]
    if len(counts) != 1:
        raise ValueError(
            f"{archive} is not there, and its name does not say how many images to draw, as "
            f"PurdueShapes5MultiObject-10000-train.gz does"
        )
    print(
        f"{archive} is not there: drawing {counts[0]} images like Purdue's. This is a generated "
        f"set, not the original."
    )
    part = archive.stem.rpartition("-")[2]
    own_seed = {"test": 2 * seed + 1, "validation": 1_000_000 + seed}.get(part, 2 * seed)
    return generate_archive(archive, counts[0], own_seed)


def generate_archive(path, num_images, seed=0):
    """Draw an archive of `num_images` pictures; the same seed draws the same ones."""
    for name, value, least in (("num_images", num_images, 1), ("seed", seed, 0)):
        if int(value) != value or value < least:
            raise ValueError(f"{name} is {value}: it must be {least} or more")
    path = Path(path).expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    items = {}
    for index in tqdm(range(num_images), desc=path.name, unit="image", disable=None):
        image, mask, box_map = draw_shapes(seed, index)
        items[index] = [*image.reshape(3, -1), mask, box_map]

    def write(part):
        with (
            part.open("wb") as file,
            # The header has a name, which marks the archive as generated (gzip -lN). It has no
            # time: the same seed gives the same bytes.
            gzip.GzipFile(GENERATED, "wb", 1, file, mtime=0) as packed,
        ):
            pickle.dump([items, LABEL_MAP], packed, protocol=3)

    return write_atomically(path, write)


def draw_shapes(seed, index):
    """An image (3, 64, 64), its mask (5, 64, 64) and its boxes {class: [[x1, y1, x2, y2], ...]}.

    Shapes are drawn one over the other, each completely inside the image. A shape that hides more
    than half of another one, or leaves less than 6 pixels of its width or height visible, is drawn
    again elsewhere. Mask and boxes are of the visible pixels.

    Five images share one set of 15 shapes: they have 1, 2, 3, 4 and 5 shapes, and each class occurs
    three times, small, medium and large. So sets of a few hundred images have nearly the same mean
    of mask**2, and their losses can be compared.
    """
    deal = np.random.default_rng([seed, 0, index // 5])
    ends = np.cumsum(deal.permutation(5) + 1)
    cards = np.split(deal.permutation(15), ends)[index % 5].tolist()
    rng = np.random.default_rng([seed, 1, index])
    owner = np.zeros((64, 64), np.uint8)  # the number of the shape that is visible, 0 for none
    areas = []
    while len(areas) < len(cards):
        size_class, shape = divmod(cards[len(areas)], 5)
        rows, columns = shape_pixels(shape, size_class, rng)
        sides = [np.ptp(rows) + 1, np.ptp(columns) + 1] if len(rows) else [0]
        if min(sides) < 6 or max(sides) > 32:
            continue
        if min(rows.min(), columns.min()) < 0 or max(rows.max(), columns.max()) > 63:
            continue
        trial = owner.copy()
        trial[rows, columns] = len(areas) + 1
        visible = [trial == number + 1 for number in range(len(areas))]
        if any(
            2 * seen.sum() < area or min(seen.any(0).sum(), seen.any(1).sum()) < 6
            for seen, area in zip(visible, areas, strict=True)
        ):
            continue
        owner = trial
        areas.append(len(rows))

    colors = rng.integers(0, 256, (len(cards), 3))
    bright = rng.integers(3, size=len(cards))  # one bright channel: no colour is near black
    colors[range(len(cards)), bright] = rng.integers(128, 256, len(cards))
    palette = np.vstack([np.zeros(3, np.uint8), colors]).astype(np.uint8)
    image = palette[owner].transpose(2, 0, 1)  # (3, 64, 64)
    mask = np.zeros((5, 64, 64), np.uint8)
    box_map = {shape: [] for shape in range(5)}
    for number, card in enumerate(cards, 1):
        shape, seen = card % 5, owner == number
        mask[shape][seen] = 50 * (shape + 1)
        x1, x2 = np.flatnonzero(seen.any(axis=0))[[0, -1]].tolist()
        y1, y2 = np.flatnonzero(seen.any(axis=1))[[0, -1]].tolist()
        box_map[shape].append([x1, y1, x2, y2])
    return image, mask, box_map


def shape_pixels(shape, size_class, rng):
    """The rows and columns of the pixels of a shape of random size, place and angle."""
    radius = 4 + 12 * ((size_class + rng.random()) / 3) ** 2.3  # gives a mean of mask**2 of 467
    turn = rng.uniform(-np.pi, np.pi)
    row, column = rng.uniform(radius / 2, 63 - radius / 2, 2)
    if shape == 2:
        return skimage.draw.disk((row, column), radius)
    if shape == 3:
        short = radius * rng.uniform(0.45, 0.7)
        return skimage.draw.ellipse(row, column, radius, short, rotation=turn)
    reach = 1
    if shape == 0:
        diagonal = rng.uniform(0.4, 0.9)  # half the angle between the diagonals: how slim it is
        angles = np.array([diagonal, np.pi - diagonal, np.pi + diagonal, -diagonal])
    elif shape == 1:
        angles = np.arange(3) * 2 * np.pi / 3 + rng.uniform(-0.3, 0.3, 3)
    else:  # every second corner of a star is near its centre
        angles = np.arange(10) * np.pi / 5
        reach = np.tile([1, 0.45], 5)
    rows = row + radius * reach * np.sin(angles + turn)
    columns = column + radius * reach * np.cos(angles + turn)
    return skimage.draw.polygon(rows, columns)


# ---- folders that Datasets/prepare_coco.py wrote ------------------------------------------------

PREPARED = "SegStudio COCO, one object per image, 1"


def read_manifest(folder, split, image_size):
    """The checked manifest.json of a prepared folder: a list of its images and their classes."""
    file = folder / "manifest.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no {file}; make the folder with Datasets/prepare_coco.py --split {split}."
        )
    try:
        manifest = json.loads(file.read_bytes())
        options = manifest["options"]
        side = options["image_size"]
        if manifest["format"] != PREPARED or not manifest["samples"] or not options["classes"]:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file} is not a manifest of prepared COCO images; prepare again."
        ) from None
    if split not in ("train", "test"):
        raise ValueError(f"train_or_test is {split!r}, not 'train' or 'test'.")
    if options["split"] != split:
        raise ValueError(
            f"{folder} holds the {options['split']} images, not {split}; give the folder prepared "
            f"with that --split."
        )
    if list(image_size) != [side, side]:
        raise ValueError(
            f"{folder} holds images of [{side}, {side}], but image_size is {list(image_size)}; "
            f"prepare with that --image-size."
        )
    return manifest


def check_mask_value(value):
    if value not in range(1, 256):
        raise ValueError(f"mask_value is {value!r}, not a whole number from 1 to 255.")
    return value


def open_prepared_folder(folder, manifest, num_images):
    """The ImageCache of a prepared folder. The manifest holds a checksum of every picture."""
    if num_images is not None and num_images < 1:
        raise ValueError(f"num_images is {num_images!r}; it must be 1 or more, or None.")
    options, samples = manifest["options"], manifest["samples"]
    side = options["image_size"]
    record_type = ImageCache.record_type(classes=1, height=side, width=side, boxes=1)

    def read_records():
        for sample, kind in itertools.product(samples, ("image", "mask")):
            if not (folder / sample[kind]).is_file():
                raise FileNotFoundError(f"{folder / sample[kind]} is missing; prepare again.")
        return len(samples), record_type, records()

    def records():
        for sample in samples:
            image = read_prepared_png(folder, sample, "image", side)  # (H, W, 3)
            mask = read_prepared_png(folder, sample, "mask", side) > 0  # (H, W)
            record = np.zeros((), record_type)
            record["image"] = image.transpose(2, 0, 1)
            record["mask"] = mask
            box = torchvision.ops.masks_to_boxes(torch.from_numpy(mask)[None])
            record["box"] = box.numpy()
            record["category"] = options["classes"].index(sample["category"])
            yield record

    content = (folder / "manifest.json").read_bytes()
    return open_cache(folder / options["split"], content, num_images, read_records)


def read_prepared_png(folder, sample, kind, side):
    """One picture of a prepared folder; ValueError if it is not the one that was written."""
    file = folder / sample[kind]
    content = file.read_bytes()
    if hashlib.sha256(content).hexdigest() != sample[f"{kind}_sha256"]:
        raise ValueError(f"{file} is not the file that was prepared; prepare again.")
    with Image.open(io.BytesIO(content), formats=("PNG",)) as picture:
        mode = {"image": "RGB", "mask": "L"}[kind]
        if picture.size != (side, side) or picture.mode != mode:
            raise ValueError(f"{file} is not an 8-bit {kind} of {side}x{side}; prepare again.")
        return np.array(picture)


# ---- how an output is read ----------------------------------------------------------------------


def innermost(dataset):
    """The dataset inside any number of torch's Subsets."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def loader_at_hand(segmenter):
    """A loader of the training images or, if there are none, of the test images."""
    given = (
        segmenter.train_dataloader,
        segmenter.dataserver_train,
        segmenter.test_dataloader,
        segmenter.dataserver_test,
    )
    data = next((data for data in given if data is not None), None)
    return data if data is None or isinstance(data, DataLoader) else DataLoader(data)


def find_mask_values(loader, classes):
    """The value of a set pixel in each mask plane: the largest one in the first images.

    The dataset's own `mask_values` only count for planes that are empty there: a student's
    subclass may return other masks than its parent.
    """
    if loader is None:
        return [50 * (k + 1) for k in range(classes)]  # DLStudio's
    declared = getattr(innermost(loader.dataset), "mask_values", None)
    reader = DataLoader(loader.dataset, loader.batch_size or 1, collate_fn=loader.collate_fn)
    found = None
    with random_numbers_kept():
        for batch in itertools.islice(reader, 50):
            largest = batch["mask_tensor"].amax(dim=(0, 2, 3))  # (C,)
            found = largest if found is None else torch.maximum(found, largest)
            if (found > 0).all():
                break
    found = found.tolist()
    if declared is None or len(declared) != len(found):
        declared = [max(found) or 1] * len(found)
    return [value or other for value, other in zip(found, declared, strict=True)]


def expects_logits(criterion):
    """Whether a loss reads outputs as logits, so that its masks are 0 and 1."""
    return getattr(criterion, "logits", isinstance(criterion, nn.BCEWithLogitsLoss))


@contextlib.contextmanager
def random_numbers_kept():
    """Restore the random states of torch, numpy and random after the block."""
    state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)  # noqa: NPY002


def read_state_dict(path, net, device):
    """The state dict in a file; ValueError if it is not one of this network."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        mine = {name: tuple(value.shape) for name, value in net.state_dict().items()}
        saved = {name: tuple(value.shape) for name, value in state.items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, AttributeError) as error:
        reason = (str(error) or "the file is cut off").splitlines()[0]
        raise ValueError(f"{path.absolute()} is not a saved model: {reason}") from None
    different = [name for name in [*mine, *saved] if mine.get(name) != saved.get(name)]
    if different:
        name = different[0]
        raise ValueError(
            f"{path.absolute()} holds the weights of another network ({len(saved)} tensors, this "
            f"one has {len(mine)}; {name} is {saved.get(name, 'missing')} there and "
            f"{mine.get(name, 'missing')} here): build the network with the depth, width and "
            f"channels it was trained with"
        )
    return state


def read_network_settings(run):
    """(class name, arguments) of the network of a run's folder, from its settings.json."""
    try:
        settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))
        return settings["network"]["class"], settings["network"]["arguments"]
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{run.absolute()} is not the folder of a run: it has no settings.json"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{run / 'settings.json'} is damaged: {error!r}") from None


# ---- the record of a training -------------------------------------------------------------------

MEMORY_FORMATS = {False: torch.contiguous_format, True: torch.channels_last}


def use_bf16(precision, device):
    """Whether to compute in bfloat16; "auto" asks the hardware."""
    if precision not in ("fp32", "bf16", "auto"):
        raise ValueError(f'precision is "fp32", "bf16" or "auto", not {precision!r}')
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.11
    in_use = os.environ.get("ONEDNN_MAX_CPU_ISA", "ALL")  # a user may hide a part of the CPU
    hidden = not any(word in in_use.upper() for word in ("ALL", "DEFAULT", "BF16", "AMX"))
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16", False)) and not hidden


def evaluation_split(segmenter, evaluate_on):
    """(the training loader, the loader to evaluate on during training)."""
    loader = segmenter.train_dataloader
    dataset = segmenter.dataserver_validation if evaluate_on is None else evaluate_on
    if dataset is None:
        raise ValueError(
            "evaluate_every needs images to evaluate on: give evaluate_on=0.1 (a share of the "
            "training images, kept out of training) or a Dataset"
        )
    if isinstance(dataset, numbers.Real):
        loader, dataset = hold_out(loader, dataset)
    return loader, DataLoader(
        dataset,
        loader.batch_size or segmenter.dl_studio.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        generator=torch.Generator().manual_seed(0),  # else it would draw from the global one
    )


def hold_out(loader, share):
    """(a loader like `loader` without a fixed part of its images, a Dataset of that part)."""
    sampler = loader.sampler
    shuffles = type(sampler) is torch.utils.data.RandomSampler
    if shuffles:  # as DataLoader(shuffle=True) makes one
        plain = (
            not sampler.replacement
            and sampler.num_samples == len(loader.dataset)
            and sampler.generator is loader.generator
        )
    else:
        plain = type(sampler) is torch.utils.data.SequentialSampler
    if not plain or loader.batch_size is None:
        raise ValueError(
            "a share of the images cannot be held out of a loader with a sampler of your own: "
            "give evaluate_on= a Dataset"
        )
    total = len(loader.dataset)
    number = round(total * share)
    if not 0 < number < total:
        raise ValueError(
            f"evaluate_on={share} of {total} training images leaves one part empty: give more "
            f"images or another share"
        )
    # The seed does not matter: all runs of a comparison hold out the same images.
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0)).tolist()
    kept, held_out = sorted(order[number:]), sorted(order[:number])
    training = DataLoader(
        Subset(loader.dataset, kept),
        loader.batch_size,
        shuffle=shuffles,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        worker_init_fn=loader.worker_init_fn,
        generator=loader.generator,
    )
    return training, Subset(loader.dataset, held_out)


class Optimizers:
    """Several optimizers, each with its own parameters, that are used as one."""

    def __init__(self, optimizers):
        self.optimizers = list(optimizers)

    @property
    def param_groups(self):
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self):
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {str(k): optimizer.state_dict() for k, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state):
        for k, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(k)])


def make_optimizer(optimizer, net, dls):
    """The optimizer of a training: the one that is given, or else SGD."""
    if optimizer is None:
        return torch.optim.SGD(net.parameters(), lr=dls.learning_rate, momentum=dls.momentum)
    if isinstance(optimizer, (list, tuple)):
        return Optimizers(optimizer)
    if isinstance(optimizer, (torch.optim.Optimizer, Optimizers)):
        return optimizer
    return optimizer(net.parameters())


class FractionSchedule:
    """A learning rate that follows a function of the fraction of training done, 0 to 1.

    torch's schedulers count iterations. In a training bounded by time their number is unknown.
    """

    def __init__(self, function, optimizer, recorder):
        self.function, self.optimizer, self.recorder = function, optimizer, recorder
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.set(recorder.fraction_done())

    def set(self, fraction):
        factor = self.function(min(fraction, 1.0))
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor

    def step(self):
        self.set(self.recorder.fraction_done(more=1))  # the recorder has not counted this one yet


def make_scheduler(scheduler, optimizer, recorder):
    if scheduler is None or hasattr(scheduler, "step"):
        return scheduler
    return FractionSchedule(scheduler, optimizer, recorder)


class TrainingHistory:
    """The record of a training: one row for each interval, with losses, seconds and scores.

    A row is a dict with epoch, iteration (counted over all epochs), seconds (of training, without
    evaluations), loss (mean over the interval) and learning_rate. A loss of several terms adds the
    mean of each term and grad_norm_TERM, the norm of its gradient at the output in the last batch
    of the interval. An evaluation adds its scores. losses.csv in the run's folder is this table.
    """

    def __init__(self, loss_name):
        self.loss_name = loss_name
        self.rows = []
        self.iterations = 0
        self.seconds = 0.0

    @property
    def losses(self) -> list:
        """The mean loss of each interval, as DLStudio prints it."""
        return [loss for _, loss in self.column("loss")]

    def column(self, name: str) -> list:
        """[(iteration, value), ...] of the rows that have a value of that name."""
        return [(row["iteration"], row[name]) for row in self.rows if name in row]

    def add(self, **values):
        """Add values to the row of this iteration; make that row if there is none."""
        if not self.rows or self.rows[-1]["iteration"] != self.iterations:
            self.rows.append({"iteration": self.iterations, "seconds": round(self.seconds, 3)})
        self.rows[-1].update(values)

    def write_csv(self, path):
        """Write the rows as a table; a cell without a value stays empty."""
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, columns)
            table.writeheader()
            table.writerows(self.rows)


class TrainingRecorder:
    """The bookkeeping of a training: progress, log, history, evaluation, checkpoint, time limit.

    The training loop runs over epochs() and calls after_step() once for each batch.
    """

    def __init__(
        self,
        dl_studio,
        net,
        criterion,
        optimizer,
        loader,
        *,
        max_seconds=None,
        log_every=500,
        on_log=None,
        evaluate_every=None,
        evaluate=None,
        order=None,
    ):
        options = {
            "log_every": log_every, "max_seconds": max_seconds, "evaluate_every": evaluate_every
        }  # fmt: skip
        for name, value in options.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} is above 0, not {value!r}")
        self.dl_studio = dl_studio
        self.net = net
        self.criterion = criterion
        self.optimizer = optimizer
        self.loader = loader
        self.max_seconds = max_seconds
        self.log_every = log_every
        self.on_log = on_log
        self.evaluate_every = evaluate_every
        self.evaluate = evaluate
        self.order = order  # the generator of the image order, if SegStudio made it
        self.seed = dl_studio.seed
        self.scheduler = None
        self.history = TrainingHistory(getattr(criterion, "name", type(criterion).__name__))
        self.epochs_done = 0
        self.first = 0  # iterations done before resuming
        self.iterations = None if max_seconds else dl_studio.epochs * len(loader)
        self.losses = torch.zeros(log_every, device=dl_studio.device)
        self.terms = defaultdict(float)
        self.count = 0  # iterations since the last line of the log

    # ---- what the loop calls ----

    def epochs(self):
        """Count the epochs until the last one is done, or the time is up."""
        self.first = self.history.iterations  # not 0 after resuming
        self.clock = time.perf_counter() - self.history.seconds
        with tqdm(
            total=self.iterations, initial=self.first, disable=None, dynamic_ncols=True,
            unit="iteration", leave=False,
        ) as self.bar:  # fmt: skip
            while not self.finished:
                if self.order is not None:  # an epoch has the same order, resumed or not
                    self.order.manual_seed(1_000_003 * self.seed + self.epochs_done)
                yield self.epochs_done + 1
                if self.count:
                    self.write_log()
                self.epochs_done += 1
                with self.off_the_clock():
                    self.save_checkpoint()

    def after_step(self, loss, output, masks):
        """Record the loss of one step; log and evaluate at the set intervals."""
        self.losses[self.count] = loss.detach()
        self.count += 1
        self.history.iterations += 1
        self.history.seconds = time.perf_counter() - self.clock
        self.output, self.masks = output.detach(), masks
        for name, value in getattr(self.criterion, "latest_terms", {}).items():
            self.terms[name] += value.detach()
        self.bar.update()
        # Reading a value makes the CPU wait for the GPU, so this happens every 50 steps there.
        if self.losses.is_cpu or self.count % 50 == 1:
            self.stop_unless_finite()
            self.bar.set_postfix(loss=f"{self.losses[self.count - 1]:.4g}", refresh=False)
        self.estimate_time()
        if self.count == self.log_every:
            self.write_log()
        if self.evaluate_every and self.history.iterations % self.evaluate_every == 0:
            with self.off_the_clock():
                scores = self.evaluate().compute()
                names = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou")
                self.history.add(**{name: scores[name] for name in names})
                self.save_history()

    @property
    def finished(self):
        return self.fraction_done() >= 1

    def fraction_done(self, more=0):
        """The fraction of the training that is done, after `more` further iterations."""
        if self.max_seconds:
            return self.history.seconds / self.max_seconds
        return (self.history.iterations + more) / self.iterations

    # ---- the beginning and the end ----

    def begin(self, scheduler, facts, resume):
        """Load the checkpoint if resume is True, write settings.json, and log the start."""
        self.scheduler = scheduler
        if resume:
            self.load_checkpoint()
        if not (self.dl_studio.run_dir / "model.pt").exists():  # else keep that model's
            self.dl_studio.write_json("settings.json", facts)
        device = facts["machine"]["device"]
        self.dl_studio.log(f"Training on {device} with the {self.history.loss_name} loss")

    def end(self, facts):
        """Call after the model is saved: write its settings.json and delete the checkpoint."""
        self.dl_studio.log("\nFinished Training\n")
        self.dl_studio.write_json("settings.json", facts)
        (self.dl_studio.run_dir / "checkpoint.pt").unlink(missing_ok=True)

    # ---- the log ----

    def write_log(self):
        """One line of the log and one row of losses.csv for the iterations since the last one."""
        self.stop_unless_finite()  # before anything is saved
        loss = self.losses[: self.count].mean().item()
        epochs = self.dl_studio.epochs if self.iterations else "?"
        iteration = self.history.iterations - self.epochs_done * len(self.loader)
        self.history.add(
            epoch=self.epochs_done + 1,
            loss=loss,
            learning_rate=self.optimizer.param_groups[0]["lr"],
            **{name: float(value) / self.count for name, value in self.terms.items()},
            **{f"grad_norm_{name}": norm for name, norm in self.gradient_norms().items()},
        )
        self.dl_studio.log(
            f"[epoch={self.epochs_done + 1}/{epochs}, iter={iteration:4d}  elapsed_time="
            f"{self.history.seconds:3.0f} secs]   {self.history.loss_name} loss: {loss:.3f}"
        )
        self.count = 0
        self.terms.clear()
        with self.off_the_clock():
            self.save_history()
            if self.on_log is not None:
                self.on_log(self.history, self.net)

    def gradient_norms(self):
        """{term: norm of its gradient at the output}, for the last batch."""
        if not hasattr(self.criterion, "terms"):
            return {}
        output = self.output.float().requires_grad_()
        with torch.enable_grad():
            terms = self.criterion.terms(output, self.masks)
            return {
                name: torch.autograd.grad(term, output, retain_graph=True)[0].norm().item()
                for name, term in terms.items()
            }

    def stop_unless_finite(self):
        bad = (~torch.isfinite(self.losses[: self.count])).nonzero()
        if len(bad) == 0:
            return
        iteration = self.history.iterations - self.count + int(bad[0]) + 1
        low, high = self.output.float().aminmax()
        rate = self.optimizer.param_groups[0]["lr"]
        raise FloatingPointError(
            f"the {self.history.loss_name} loss became {self.losses[bad[0]].item():g} at iteration "
            f"{iteration} (outputs from {low:.4g} to {high:.4g}), so no model was saved: try a "
            f"learning rate ten times smaller than {rate:g}, clip_grad_norm=1.0, masks of 0 and 1, "
            f"or another loss"
        )

    def estimate_time(self):
        """Log how long the training takes, measured on ten iterations after the first three."""
        done_here = self.history.iterations - self.first
        if done_here == 3:
            self.third = self.history.seconds  # the first iterations are slower
        if done_here == 13 and self.iterations is not None:
            each = (self.history.seconds - self.third) / 10
            left = (self.iterations - self.history.iterations) * each
            self.dl_studio.log(
                f"Training takes about {left / 60:.1f} more minutes: {self.iterations} iterations "
                f"of {1000 * each:.0f} ms (measured on ten of them)"
            )

    @contextlib.contextmanager
    def off_the_clock(self):
        paused = time.perf_counter()
        yield
        self.clock += time.perf_counter() - paused

    # ---- files ----

    def save_history(self):
        path = self.dl_studio.run_dir / "losses.csv"
        self.dl_studio.write_atomically(path, self.history.write_csv)

    def parts(self):
        """The objects whose state a resumed training needs."""
        parts = {"net": self.net, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}

    def save_checkpoint(self):
        """Write checkpoint.pt: everything that a resumed training needs."""
        state = {name: part.state_dict() for name, part in self.parts().items()}
        state["epochs_done"] = self.epochs_done
        state["seed"] = self.seed
        state["history"] = vars(self.history)
        state["random"] = torch.get_rng_state()
        path = self.dl_studio.run_dir / "checkpoint.pt"
        self.dl_studio.write_atomically(path, lambda part: torch.save(state, part))

    def load_checkpoint(self):
        """Continue from checkpoint.pt, if there is one."""
        path = self.dl_studio.run_dir / "checkpoint.pt"
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location=self.dl_studio.device, weights_only=True)
            for name, part in self.parts().items():
                part.load_state_dict(state[name])
            torch.set_rng_state(state["random"].cpu())
            vars(self.history).update(state["history"])
            self.epochs_done = state["epochs_done"]
            self.seed = self.seed if state["seed"] is None else state["seed"]
        except Exception as error:  # torch.load raises nearly anything on a damaged file
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{path.absolute()} is not a checkpoint of this network and optimizer ({reason}): "
                f"remove it to start again"
            ) from None
        if isinstance(self.scheduler, FractionSchedule):
            self.scheduler.set(self.fraction_done())
        self.dl_studio.log(f"Resuming after epoch {self.epochs_done}")


def training_facts(dls, recorder, spec, scheduler, augment, clip_grad_norm, bf16):
    """The content of settings.json: everything needed to repeat a run."""
    net, loader = recorder.net, recorder.loader
    options = {
        "scheduler": scheduler.function if isinstance(scheduler, FractionSchedule) else scheduler,
        "augment": augment,
        "clip_grad_norm": clip_grad_norm,
        "evaluate_every": recorder.evaluate_every,
        "log_every": recorder.log_every,
    }
    optimizers = getattr(recorder.optimizer, "optimizers", [recorder.optimizer])
    return {
        "command": sys.argv,
        "settings": {name: value for name, value in vars(dls).items() if name[0] != "_"},
        "network": {
            "class": type(net).__name__,
            "arguments": getattr(net, "arguments", None),
            "parameters": sum(p.numel() for p in net.parameters()),
        },
        "training": {
            "loss": recorder.history.loss_name,
            "loss_options": {
                name: value
                for name, value in vars(recorder.criterion).items()
                if isinstance(value, (str, int, float, tuple)) and name[0] != "_"
            },
            "options": {name: repr(value) for name, value in options.items()},
            "optimizer": " and ".join(type(optimizer).__name__ for optimizer in optimizers),
            "optimizer_settings": {
                name: value
                for name, value in optimizers[0].param_groups[0].items()
                if name != "params"
            },
            "precision": "bf16" if bf16 else "fp32",
            "images": len(loader.dataset),
            "batch_size": loader.batch_size,
            "max_seconds": recorder.max_seconds,
        },
        "data": {
            "class_names": spec["class_names"],
            "mask_values": spec["mask_values"],
            "source": data_source(innermost(loader.dataset)),
        },
        "machine": {
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "device": device_name(dls.device),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "segstudio": __version__,
        },
    }


def data_source(dataset):
    """Where the images come from, as text; it says so if SegStudio drew them."""
    if hasattr(dataset, "manifest"):
        return dataset.manifest.get("description") or "prepared COCO images"
    if getattr(dataset, "generated", False):
        return "generated by SegStudio, not the original"
    return type(dataset).__name__


def device_name(device):
    if device.type == "cuda":
        return f"the GPU ({torch.cuda.get_device_name(device)})"
    if device.type == "mps":
        return "the GPU (Apple MPS)"
    return f"the CPU ({torch.get_num_threads()} threads)"

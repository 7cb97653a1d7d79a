"""SegStudio: semantic segmentation in one module, in the order of a lecture.

Semantic segmentation assigns a class to every pixel of an image. This module teaches it by
experiments. Read it from top to bottom:

SegStudio                              the settings of a run, its device and its folder
  SemanticSegmentation                 an experiment:
    §1 data                            PurdueShapes5MultiObjectDataset, CocoSingleObjectDataset
    §2 networks                        mUnet (SkipBlockDN, SkipBlockUP), UNet
    §3 losses                          SegmentationLossMSE, -MAE, -Dice, -Comb, -BCEDice
    §4 scores                          SegmentationScores, ConstantMask
    §5 training                        Muon, training_loop: the loop and its step
    §6 testing and predicting          score, predict_image, run_code_for_testing_...
    §7 figures                         test pictures, overlays, the coverage probe

What is needed but not taught stands in files beside this one: archives, cache, drawn shapes and the
flags of the examples in backstage.py, the order of the images in loading.py, the record of a
training in recording.py, the work of several processes in processes.py.

Words: an *image* (3, H, W) holds values from 0 to 255. A *mask* (C, H, W) has one plane per
class: the class's mask value on its objects, 0 elsewhere. The *output* (C, H, W) is what the
network returns; a *pred* is the output after thresholding: True or False for each pixel. Lower
losses and higher scores are better. In shapes, N is the number of images in a batch, C the
number of classes, H the height and W the width.

To copy a class into a file of your own: `python -m SegStudio show mUnet` prints a file that runs.
Networks and losses need nothing but `import torch` and `from torch import nn`; scores also need
`import math`.
"""

import copy
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from tqdm import tqdm

if __package__:
    from . import backstage, loading, processes, recording
else:  # the folder of this file is on sys.path
    import backstage
    import loading
    import processes
    import recording

__version__ = backstage.__version__
__all__ = ["SegStudio", *backstage.DLSTUDIO_MODULES]  # a star import gives what DLStudio's gave
__getattr__ = backstage.dlstudio_module


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
        debug_train, debug_test, convo_layers_config, fc_layers_config: DLStudio's arguments, kept
            for its scripts.
        seed: makes a run repeatable: the first weights, the image order, the augmentation.
        num_workers: extra processes that load data. 0: the main process loads them.
        results_dir: folder of all runs.
        run_name: folder of this run in results_dir. A new training in the folder of an earlier
            run moves that run's files to NAME_before_1. None: the script's name, with a number if
            that name is taken.
        show: open a window for each figure, besides saving it.
        deterministic: use only algorithms that give the same result each time. On a CPU they do
            that anyway; on a GPU it makes a run repeatable, and slower.

    Errors: ValueError for positional, unknown or impossible arguments. OSError, at the first use
    of run_dir, if results_dir cannot be written or another process writes to that run.

    Class Path:   SegStudio
    """

    PALETTE = backstage.PALETTE

    # Defaults on the class: a student's subclass may skip this __init__.
    seed = run_name = path_saved_model = _run_dir = None
    _whole = _earlier_files = None  # of a part of a run: the run; what an earlier process left
    _parts = ()
    num_workers = _trainings = _displayed = 0
    results_dir, show = "runs", False

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
        fc_layers_config=None,
        seed=None,
        num_workers=0,
        results_dir="runs",
        run_name=None,
        show=False,
        deterministic=False,
        **unknown,
    ):
        backstage.refuse_unknown_settings(SegStudio, args, unknown)
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
        self.fc_layers_config = fc_layers_config
        self.seed = seed
        self.num_workers = num_workers
        self.results_dir = results_dir
        self.run_name = run_name
        self.show = show
        self.deterministic = deterministic
        backstage.check_settings(self)
        processes.join(use_gpu)
        self.device = torch.device("cpu")
        if use_gpu and torch.cuda.is_available():
            self.device = torch.device("cuda", processes.local_rank())
        elif use_gpu and torch.backends.mps.is_available():
            self.device = torch.device("mps")
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - students' own code may draw from it
            torch.manual_seed(seed)
        if deterministic:
            backstage.use_deterministic_algorithms()

    @property
    def run_dir(self) -> Path:
        """The folder of this run, created at its first use."""
        if self._run_dir is None:
            self._run_dir = backstage.make_run_dir(
                Path(self.results_dir).expanduser(), self.run_name
            )
            if processes.is_main() and self._whole is None:
                backstage.lock_run_dir(self._run_dir, self)
            self._earlier_files = backstage.content_of(self._run_dir)
        return self._run_dir

    def part_of_run(self, name: str) -> "SegStudio":
        """The same settings with a folder of their own, `name`, inside this run's folder."""
        part = copy.copy(self)
        part.results_dir, part.run_name = self.run_dir, name
        part._whole, part._run_dir, part._trainings, part._parts = self, None, 0, ()
        self._parts += (name,)
        return part

    def log(self, text: str = "") -> None:
        """Print a line and append it to log.txt in the run's folder."""
        if processes.is_main():
            tqdm.write(text)  # print would break the progress bar
        backstage.append_text(self.run_dir / "log.txt", text + "\n")

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
        """Save a figure in the run's folder. A notebook shows it; show=True opens its window."""
        path = self.run_dir / name

        def write(part):
            figure.savefig(part, format="png", bbox_inches="tight")

        backstage.write_or_warn(path, write)
        if self.show:
            import matplotlib.pyplot as plt

            plt.show()
            plt.close(figure)
        else:
            backstage.show_inline(path)
        return path

    def display_tensor_as_image(self, tensor: torch.Tensor, title: str = "") -> None:
        """Save a tensor as a picture in the run's folder and log the path of its file.

        A notebook shows it under the cell; show=True opens it in a window.

        Integer tensors hold values from 0 to 255, float tensors from 0 to 1; in colour, other
        values are clipped. As in DLStudio, a float tensor with minimum -1 and maximum 1 counts as a
        normalized image and is rescaled to 0..1. In greyscale the minimum is black and the maximum
        is white.

        Shape: (3, H, W) colour, (1, H, W) or (H, W) greyscale, on any device.
        Errors: ValueError for another shape.

        Class Path:   SegStudio  ->  display_tensor_as_image
        """
        self._displayed += 1
        name, figure = backstage.draw_tensor(self, tensor, str(title))
        self.log(f"Picture: {self.save_figure(figure, name)}")

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
                archive = backstage.find_archive(dl_studio, dataset_file)
                self.cache, self.generated = backstage.open_archive(archive, num_images)

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
                """The items as in the archive: {index: [R, G, B, mask_array, bbox_map]}.

                A script may assign other items, as a dict or a list.
                """
                if isinstance(self.cache, backstage.AssignedItems):
                    return self.cache.items
                return backstage.ArchiveItems(self.cache)

            @dataset.setter
            def dataset(self, items):
                self.cache = backstage.AssignedItems(items)

            @staticmethod
            def generate(path, num_images: int, seed: int = 0) -> Path:
                """Draw an archive like the course's; the same seed gives the same images."""
                return backstage.generate_archive(path, num_images, seed)

            @staticmethod
            def find_or_generate(dataroot, dataset_file: str, seed: int = 0) -> Path:
                """The path of the archive. If it is missing, draw as many images as its name says:
                PurdueShapes5MultiObject-10000-train.gz has 10,000."""
                return backstage.find_or_generate_archive(
                    Path(dataroot).expanduser() / dataset_file, seed
                )

        class CocoSingleObjectDataset(Dataset):
            """Photos with one object each, from a folder that Datasets/prepare_coco.py wrote.

            The homework's bonus task: one object per photo, one output channel. The core of the
            preparation is short; pycocotools does the work:
                coco = COCO("instances_train2017.json")
                chosen = coco.getCatIds(["cake", "dog", "motorcycle"])
                for image_id in coco.getImgIds(catIds=coco.getCatIds(["dog"])):
                    annotations = coco.loadAnns(coco.getAnnIds(image_id, chosen))
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
                self.manifest = backstage.read_manifest(folder, train_or_test, dl_studio.image_size)
                self.generated = self.manifest.get("description", "").startswith("SYNTHETIC")
                self.class_names = tuple(self.manifest["options"]["classes"])
                self.class_labels = dict(enumerate(self.class_names))
                self.mask_values = (backstage.check_mask_value(mask_value),)
                self.cache = backstage.open_prepared_folder(folder, self.manifest, num_images)

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
            settings = loading.loader_arguments(dls)
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

            width, input_scale = 64, 1.0  # DLStudio's: a student's subclass may skip this __init__

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

                upsampling = "strided"  # a student's subclass may skip this __init__

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
                    self.upsampling = upsampling
                    if upsample and upsampling == "strided":
                        self.upsampler = nn.ConvTranspose2d(
                            in_ch, out_ch, 1, stride=2, dilation=2, output_padding=1
                        )
                    elif upsample:
                        self.upsampler = nn.ConvTranspose2d(in_ch, out_ch, 1)

                def enlarge(self, x: torch.Tensor) -> torch.Tensor:
                    """(N, in_ch, H, W) -> (N, out_ch, 2H, 2W)."""
                    x = self.upsampler(x)
                    if self.upsampling == "dense":
                        x = nn.functional.interpolate(x, scale_factor=2)  # nearest neighbour
                    return x

                def forward(self, x: torch.Tensor) -> torch.Tensor:
                    identity = x
                    out = torch.relu(self.bn1(self.convoT1(x)))  # (N, out_ch, H, W)
                    if self.in_ch == self.out_ch:
                        out = torch.relu(self.bn2(self.convoT2(out)))
                    if self.upsample:
                        out = self.enlarge(out)  # (N, out_ch, 2H, 2W)
                        identity = self.enlarge(identity)
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

                # The names keep DLStudio's numbers of channels, 64 and 128, for any width.
                w = width
                n = self.depth
                DN, UP = self.SkipBlockDN, self.SkipBlockUP
                down = {"skip_connections": skip_connections}
                up = {"skip_connections": skip_connections}
                if upsampling != "strided":  # a student's block may have DLStudio's arguments only
                    up["upsampling"] = upsampling
                self.pool = nn.MaxPool2d(2)
                self.conv_in = nn.Conv2d(3, w, 3, padding=1)
                self.bn1DN = nn.BatchNorm2d(w)
                self.bn2DN = nn.BatchNorm2d(2 * w)
                self.skip64DN_arr = nn.ModuleList(DN(w, w, **down) for _ in range(n))
                self.skip64dsDN = DN(w, w, downsample=True, **down)
                self.skip64to128DN = DN(w, 2 * w, **down)
                self.skip128DN_arr = nn.ModuleList(DN(2 * w, 2 * w, **down) for _ in range(n))
                self.skip128dsDN = DN(2 * w, 2 * w, downsample=True, **down)
                self.bn1UP = nn.BatchNorm2d(2 * w)
                self.bn2UP = nn.BatchNorm2d(w)
                self.skip64UP_arr = nn.ModuleList(UP(w, w, **up) for _ in range(n))
                self.skip64usUP = UP(w, w, upsample=True, **up)
                self.skip128to64UP = UP(2 * w, w, **up)
                self.skip128UP_arr = nn.ModuleList(UP(2 * w, 2 * w, **up) for _ in range(n))
                self.skip128usUP = UP(2 * w, 2 * w, upsample=True, **up)
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
                terms = self.terms(output, mask)
                self.latest_terms = {k: term.detach() for k, term in terms.items()}  # recorded
                return terms[self.base] + terms["dice"]

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
                terms = self.terms(output, mask)
                self.latest_terms = {k: term.detach() for k, term in terms.items()}  # recorded
                return terms["bce"] + terms["dice"]

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

        @staticmethod
        def check_loss(loss: Any) -> Any:
            """Examine a loss of your own: what is wrong with it, the smallest example, and why.

            `print(segmenter.check_loss(MyDice))` takes a few seconds. The loss is a module, a
            function, a class, or a function that makes one. It is called with (output, mask).

            Returns: a report with .objections, .remarks, .recognised and .ok (doc/check-loss.md).

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            return backstage.tool("check_loss").check_loss(loss)

        # ==== §4 SCORES ==========================================================================

        class SegmentationScores:
            """IoU, Dice, pixel accuracy and boundary IoU, counted over a whole test set.

            Training minimizes a loss. A score measures how good the masks are, on one scale for all
            networks. The counts of all batches are added up and divided once, at the end: a mean
            over batches would give a nearly empty batch the weight of a full one.

            For each class, over all pixels of all images: I pixels are set in both pred and mask, P
            pixels in the pred and M pixels in the mask.
                IoU             I / (P + M - I), intersection over union: the usual score
                Dice            2I / (P + M) = 2 IoU / (1 + IoU)
                pixel accuracy  share of pixels where both agree. Most pixels are background, so a
                                network that predicts nothing has nearly 1.
                boundary IoU    the IoU of the boundary regions: the pixels of each mask at most d
                                pixels from its edge. It measures outlines; masks full of
                                holes score low.

            The mean is over classes. A class that is in no pred and no mask has no IoU, Dice and
            boundary IoU and is not counted in their means; its pixel accuracy is 1 and is counted.
            The per-image mean IoU is the mean over all pairs of an image and a class, without the
            pairs in which the class is neither in the pred nor in the mask.

            The confusion matrix shows which class is taken for which: a row for each true class, a
            column for each predicted one, the background first. A pixel that is predicted as
            several classes is divided evenly between them. If masks overlap, a prediction that is
            right for one class of a pixel is no mistake in the rows of its other classes.

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
                self.confusion = torch.zeros([len(self.class_names) + 1] * 2, dtype=torch.float64)
                self.predicted_names = self.class_names  # of the columns of the confusion matrix
                self.nothing = "no class" if "background" in self.class_names else "background"
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

            @staticmethod
            def confused(pred: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                """The confusion matrix of each image, in pixels: (N, C + 1, C + 1)."""
                n, c = pred.shape[:2]
                false = pred & ~mask  # predicted, but not true
                # At a pixel of class t, the answer to "is it t?" is t itself, if it is predicted,
                # and all false classes.
                answers = pred + false.sum(dim=1, keepdim=True)  # (N, C, H, W), a number for each t
                share = mask / answers.clamp(min=1)  # of each answer
                matrix = torch.zeros(n, c + 1, c + 1, device=pred.device)
                matrix[:, 1:, 1:] = torch.einsum("nthw,nphw->ntp", share, false.float())
                matrix[:, 1:, 1:] += torch.diag_embed((share * pred).sum(dim=(2, 3)))
                matrix[:, 1:, 0] = (mask & (answers == 0)).sum(dim=(2, 3))
                nothing = ~mask.any(dim=1, keepdim=True)  # (N, 1, H, W): background
                share = nothing / pred.sum(dim=1, keepdim=True).clamp(min=1)
                matrix[:, 0, 1:] = (share * pred).sum(dim=(2, 3))
                matrix[:, 0, 0] = (nothing[:, 0] & ~pred.any(dim=1)).sum(dim=(1, 2))
                return matrix

            def update(
                self, pred: torch.Tensor, mask: torch.Tensor, category: torch.Tensor | None = None
            ) -> torch.Tensor:
                """Count one batch; returns the mean IoU of each image (N,), nan if it has none."""
                if pred.shape != mask.shape or pred.dim() != 4:
                    raise ValueError(
                        f"scores need pred and mask of one shape (N, C, H, W), not "
                        f"{tuple(pred.shape)} and {tuple(mask.shape)}"
                    )
                if pred.shape[1] > 1:
                    category = None  # the channels are the classes
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
                confusion = self.confused(pred, mask).cpu().double()  # (N, C + 1, C + 1)
                if category is None:
                    self.counts += counts.sum(dim=0)
                    self.confusion += confusion.sum(dim=0)
                else:  # one channel: the network finds objects and does not name them
                    self.predicted_names = ("object",)
                    self.counts.index_add_(0, category.cpu(), counts.sum(dim=1))
                    self.confusion[0, :2] += confusion[:, 0].sum(dim=0)
                    self.confusion[:, :2].index_add_(0, category.cpu() + 1, confusion[:, 1])
                self.images += len(pred)
                return iou.sum(dim=1) / seen.sum(dim=1)

            def __add__(self, other):
                """The scores over two disjoint sets of images, for example of two processes."""
                total = type(self)(self.class_names)
                total.counts = self.counts + other.counts
                total.confusion = self.confusion + other.confusion
                latest = other if other.images else self
                total.predicted_names = latest.predicted_names
                total.images = self.images + other.images
                return total

            def compute(self) -> dict:
                """All scores: means, and each class. None: the class is in no pred and no mask.

                "confusion" has a row for each true class that occurs: {class: {predicted as: share
                of its pixels}}.
                """
                i, p, m, agree, pixels, edge_i, edge_p, edge_m, iou_sum, pairs = self.counts.T
                iou, dice, accuracy = i / (p + m - i), 2 * i / (p + m), agree / pixels
                boundary_iou = edge_i / (edge_p + edge_m - edge_i)
                scores = torch.stack((iou, dice, accuracy, boundary_iou), dim=1)  # (C, 4)

                def number(value):
                    return None if math.isnan(value) else float(value)

                means = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou")
                mean_scores = [number(value) for value in scores.nanmean(dim=0)]
                shares = self.confusion / self.confusion.sum(dim=1, keepdim=True)
                columns = (self.nothing, *self.predicted_names)
                return {
                    **dict(zip(means, mean_scores, strict=True)),
                    "per_image_mean_iou": number(iou_sum.sum() / pairs.sum()),
                    "images": self.images,
                    "classes": {
                        name: dict(zip(self.metrics, map(number, row), strict=True))
                        for name, row in zip(self.class_names, scores, strict=True)
                    },
                    "confusion": {
                        name: dict(zip(columns, row.tolist(), strict=False))
                        for name, row in zip((self.nothing, *self.class_names), shares, strict=True)
                        if not row.isnan().any()
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
                margin = max(14, *(len(name) + 1 for name in self.class_names))
                now = rows(self)
                then = now if before is None else rows(before)
                lines = [f"{'':{margin}}" + "".join(f"{title:>{width}}" for title in self.titles)]
                for name, old, new in zip((*self.class_names, "mean"), then, now, strict=True):
                    cells = [
                        cell(n) if before is None else f"{cell(o)} -> {cell(n)}"
                        for o, n in zip(old, new, strict=True)
                    ]
                    lines.append(f"{name:{margin}}" + "".join(f"{c:>{width}}" for c in cells))
                per_image = cell(self.compute()["per_image_mean_iou"])
                lines.append(f"mean IoU of single images {per_image}, over {self.images} images")
                return "\n".join(lines)

            __str__ = table

            def explanation(self) -> str:
                """What the columns of the table say, one line for each score."""
                nothing = 1 - (self.counts[:, 2] / self.counts[:, 4]).nanmean()
                return (
                    "IoU: the pixels in both mask and prediction, divided by those in either. "
                    "Compare networks by it.\n"
                    "Dice: the same information on another scale, 2 IoU / (1 + IoU).\n"
                    "Pixel accuracy: says little, because it counts the background. "
                    f"Predicting nothing has {nothing:.3f} here.\n"
                    "Boundary IoU: the IoU of the bands along the outlines. Ragged edges and holes "
                    "lower it."
                )

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
            recorder: recording.TrainingRecorder,
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
                    if backstage.expects_logits(criterion):
                        masks = (masks > 0).float()  # 0 or 1
                    if augment is not None:
                        images, masks = augment(images, masks)
                    with recording.bf16_autocast(device, bf16):
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
        ) -> recording.TrainingHistory:
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
            criterion: Callable | None = None,
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
            evaluate_on: Dataset | DataLoader | float | None = None,
            resume: bool = False,
        ) -> recording.TrainingHistory:
            """Train `net` on self.train_dataloader with a loss of your choice, and save it.

            Args:
                loss_type: "MSE", "MAE", "Dice", "Combined" (MSE + dice_scale * Dice), "MAE+Dice"
                    or "BCEDice".
                dice_scale: factor on the Dice term of the combined losses.
                criterion: a loss of your own instead of a name: a module or a function, called
                    with (output, mask). If it expects logits and masks of 0 and 1, it has
                    `logits = True`.
                dice_form: the form of "Dice": "squared", "linear" or "pixelwise".
                optimizer: a torch optimizer, a list of them (each with its own parameters), or a
                    function that makes one from the parameters, such as
                    functools.partial(torch.optim.AdamW, lr=1e-3). None: SGD, as in the settings.
                scheduler: a torch scheduler, stepped after each iteration (ReduceLROnPlateau: with
                    the mean loss of each epoch); or a function from the fraction of training done
                    (0 to 1) to a factor on the learning rate.
                augment: a function of a batch (images, masks) that returns a changed batch.
                clip_grad_norm: the largest norm of a gradient; larger gradients are scaled down.
                precision: "fp32", "bf16", or "auto": bf16 if the device has it in hardware.
                channels_last: use the memory order in which convolutions are faster.
                max_seconds: train for this time (evaluations not counted) instead of epochs.
                log_every: iterations between two lines of the log, by default 500 as in DLStudio.
                on_log: a function, called with (history, net) after each line of the log.
                evaluate_every: iterations between two evaluations. They do not change the training.
                evaluate_on: the Dataset or DataLoader to evaluate on, or a share of the training
                    images, which is then left out of training. None: self.dataserver_validation.
                resume: continue the training in the run's folder after its last checkpoint. All
                    settings must be those of its beginning. A finished one is loaded.

            A checkpoint is written at each line of the log, and at least every two minutes. After
            Ctrl-C the step is finished, a checkpoint is written and KeyboardInterrupt raised.

            Returns: TrainingHistory. The weights are in model.pt, and in path_saved_model if set.

            Errors: ValueError for an impossible argument, and for a run to resume that was begun
            with other settings. FloatingPointError, with the iteration, if the loss or a weight is
            not finite; then no model is saved.

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            dls = self.dl_studio
            dls.device = torch.device(dls.device)  # a script may have set it by name
            if criterion is None:
                criterion = self.make_loss(loss_type, dice_scale, dice_form)
            if evaluate_on is not None and evaluate_every is None:
                raise ValueError("evaluate_on needs evaluate_every, in iterations")
            loader, evaluation_loader, evaluate = self.train_dataloader, None, None
            if evaluate_every is not None:
                loader, evaluation_loader = loading.evaluation_split(self, evaluate_on)

                def evaluate():
                    return self.score(net, evaluation_loader)

            bf16 = recording.use_bf16(precision, dls.device)
            net.to(memory_format=recording.MEMORY_FORMATS[channels_last])
            # train() would also switch layers that a script has frozen in eval mode.
            if not net.training:
                net.train()
            with backstage.on_device(dls.device, net, criterion):
                optimizer = recording.make_optimizer(optimizer, net, dls)
                recorder = recording.TrainingRecorder(
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
                    augment=augment,
                    order=self.order if loader.generator is self.order else None,
                )
                scheduler = recording.make_scheduler(scheduler, optimizer, recorder)
                spec = self.data_spec() | {"logits": backstage.expects_logits(criterion)}
                facts = recording.training_facts(
                    recorder,
                    spec,
                    scheduler=scheduler,
                    clip_grad_norm=clip_grad_norm,
                    bf16=bf16,
                    evaluation_loader=evaluation_loader,
                )
                recorder.begin(scheduler, facts, resume)
                net.output_spec = spec
                batches = recorder.batches
                with (
                    recorder.watch(),
                    processes.replicated(net, batches, dls.image_size) as replica,
                ):
                    self.training_loop(
                        replica, batches, criterion, optimizer, recorder, scheduler=scheduler,
                        augment=augment, clip_grad_norm=clip_grad_norm, bf16=bf16,
                    )  # fmt: skip
            if not recorder.complete:  # else this training was finished before
                self.save_model(net)
            recorder.end(facts)
            self.save_loss_figure(recorder.history)
            return recorder.history

        def make_loss(self, loss_type: str, dice_scale: float, dice_form: str) -> nn.Module:
            """The loss that DLStudio, the report or the handout call by this name."""
            if not isinstance(loss_type, str):
                raise ValueError(f"loss_type is a name; pass {loss_type!r} as criterion=")
            batch_size = self.dl_studio.batch_size  # a loss that a subclass brings may need it
            match loss_type.lower():
                case "mse":
                    return self.SegmentationLossMSE(batch_size)
                case "mae":
                    return self.SegmentationLossMAE(batch_size)
                case "dice" if dice_form == "squared":
                    return self.SegmentationLossDice(batch_size)
                case "dice":
                    return self.SegmentationLossDice(batch_size, form=dice_form)
                case "combined":
                    return self.SegmentationLossComb(batch_size, dice_scale)
                case "mae+dice":
                    return self.SegmentationLossComb(batch_size, dice_scale, base="mae")
                case "bcedice":
                    return self.SegmentationLossBCEDice(batch_size)
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
            if self.dl_studio.path_saved_model is not None and processes.is_main():
                paths.append(Path(self.dl_studio.path_saved_model).expanduser())
            for path in paths:
                self.dl_studio.write_atomically(path, lambda part: torch.save(state, part))

        # ==== §6 TESTING AND PREDICTING ==========================================================

        def infer(self, net: nn.Module, images: torch.Tensor) -> torch.Tensor:
            """The output (N, C, H, W) of `net` for images (N, 3, H, W), in eval mode.

            In train mode BatchNorm would use the statistics of the batch, so an output would depend
            on the other images, and it would change the running averages.
            """
            device = self.dl_studio.device
            with backstage.on_device(device, net), backstage.eval_mode(net), torch.no_grad():
                return net(images.to(device)).float()

        def data_spec(self) -> dict:
            """How to read an output, as far as the data tells: class names and mask values."""
            loader = backstage.loader_at_hand(self)
            labels = self.dl_studio.class_labels
            values = backstage.find_mask_values(loader, len(labels))
            return {
                "class_names": backstage.find_class_names(loader, len(values), labels),
                "mask_values": values,
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
            scores = self.SegmentationScores(backstage.scored_classes(spec, dataloader))
            device = self.dl_studio.device
            with backstage.random_numbers_kept(), backstage.on_device(device, net):
                progress = backstage.progress_bar(dataloader, "scoring")
                for number, batch in processes.share(enumerate(progress)):
                    output = self.infer(net, batch["image"])  # (N, C, H, W)
                    pred = self.binarize(net, output, spec)
                    mask = batch["mask_tensor"].to(pred.device) > 0
                    ious = scores.update(pred, mask, batch.get("category"))
                    if on_batch is not None:
                        on_batch(number, batch, output.cpu(), pred.cpu(), ious)
            scores = processes.total(scores)
            if scores.images == 0:
                raise ValueError("there are no images to score: the loader has no batch")
            return scores

        def score_baselines(self) -> dict:
            """{name: scores} of two baselines that ignore the image; a network should beat both.

            "all foreground" sets every pixel; "mean training mask" sets the pixels that are set in
            more than half of the training masks.
            """
            total, count = 0.0, 0
            with backstage.random_numbers_kept():
                for batch in backstage.progress_bar(self.train_dataloader, "mean training mask"):
                    total = total + (batch["mask_tensor"] > 0).double().sum(dim=0)  # (C, H, W)
                    count += len(batch["mask_tensor"])
            if count == 0:
                raise ValueError("the training loader has no batch: there is no mean mask")
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

            Prints the score table. Writes metrics.json and, for every `show_every`-th test batch,
            predictions-NNN.png, which shows truth beside prediction by the rule of the scores, and
            test-batch-NNN.png, which shows the output through DLStudio's windows (only for masks
            with DLStudio's values and boxes). worst.png shows the four images with the lowest mean
            IoU, confusion.png which class is taken for which, and why-it-fails.html the causes of
            the wrong pixels.

            Args:
                before: SegmentationScores on the same images to print beside these, for example
                    those of the untrained network.
                baselines: {name: SegmentationScores}, printed and saved as well.

            Returns: SegmentationScores.

            Class Path:   SegStudio  ->  SemanticSegmentation
            """
            dls = self.dl_studio
            self.load_model(net)
            spec = self.output_spec_of(net)
            class_names = backstage.scored_classes(spec, self.test_dataloader)
            size = getattr(self.test_dataloader, "batch_size", None) or 1
            shown = []  # (number of the batch, batch, output, pred)
            why = backstage.tool("why_it_fails")
            causes = why.ErrorCauses(class_names)
            worst = []  # (mean IoU, -wrong pixels, number of the image, its item, its pred)

            def look(number, batch, output, pred, ious):
                if number % show_every == 0:
                    first = {key: value[:8] for key, value in batch.items()}
                    shown.append((number, first, output[:8], pred[:8]))
                wrong = (pred != (batch["mask_tensor"] > 0)).sum(dim=(1, 2, 3))  # (N,)
                for row, iou in enumerate(ious.tolist()):
                    if not math.isnan(iou):
                        item = {key: value[row] for key, value in batch.items()}
                        worst.append(
                            (iou, -wrong[row].item(), number * size + row, item, pred[row])
                        )
                causes.add(batch, pred, first=number * size)
                worst.sort(key=lambda entry: entry[:3])
                del worst[4:]

            scores = self.score(net, on_batch=look)
            for number, batch, output, pred in processes.gather(shown):
                dls.log(f"Showing output for test batch {number + 1}")
                if backstage.fits_dlstudios_windows(spec, batch):
                    self.save_test_figure(net, batch, output, number + 1)
                first = number * size
                self.save_prediction_figure(batch, pred, class_names, number + 1, first)
            worst = sorted(processes.gather(worst), key=lambda entry: entry[:3])[:4]
            dls.log(f"\nScores on {scores.images} test images:\n{scores.table(before)}")
            dls.log(scores.explanation())
            metrics = scores.compute()
            if before is not None:
                metrics["before"] = before.compute()
            if baselines:
                dls.log(
                    "\nBaselines ignore the image: a network that scores no higher has learned "
                    "nothing useful."
                )
            for name, baseline in (baselines or {}).items():
                dls.log(f"\nBaseline, {name}:\n{baseline}")
                metrics.setdefault("baselines", {})[name] = baseline.compute()
            self.save_confusion_figure(scores)
            picture = None
            if worst:
                worst = [(iou, *entry) for iou, _, *entry in worst]
                picture = self.save_worst_figure(worst, class_names)
            why.ErrorCauses.total(processes.gather([causes])).write(self, picture)
            dls.write_json("metrics.json", metrics)  # last: a run with this file is finished
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
            state = processes.from_main(lambda: backstage.read_state_dict(path, net))
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
            network, arguments = backstage.read_network_settings(run)
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
            class_names = self.output_spec_of(net)["class_names"]
            batch = {key: value[:8] for key, value in batch.items()}  # more are too small to see
            # Beyond 0..255 an output would darken the whole picture; the windows stay the same.
            output = self.to_mask_values(net, output[:8]).nan_to_num(0).clamp(0, 255)
            images = backstage.as_bytes(batch["image"])
            grid = self.make_test_grid(images, batch["bbox_tensor"], output)
            height = grid.shape[1] - 2
            rows = ["largest output", "input, true boxes", *(f"{k} channel" for k in class_names)]
            aspect = images.shape[2] / images.shape[3]
            figure = self.dl_studio.new_figure(
                figsize=(2 + 1.1 * len(output), 1.1 * aspect * len(rows) + 0.8), dpi=100
            )
            axes = figure.add_subplot()
            axes.imshow(grid.permute(1, 2, 0).clamp(0, 1).numpy())
            axes.set_xticks([])
            axes.set_yticks([height / len(rows) * (k + 0.5) for k in range(len(rows))], rows)
            axes.tick_params(length=0)
            kind = backstage.kind_of_images(self)
            axes.set_title(f"Batch {number} of the {kind}:\nDLStudio's view", loc="left")
            axes.set_xlabel(
                "A channel is white where its output lies in DLStudio's\n"
                "window around the class's mask value, dark elsewhere.\n"
                f"Masks by the rule of the scores: predictions-{number:03d}.png",
                fontsize=9,
            )
            return self.dl_studio.save_figure(figure, f"test-batch-{number:03d}.png")

        @staticmethod
        def overlay(
            image: torch.Tensor,
            masks: torch.Tensor,
            colors: Sequence[str] | None = None,
            *,
            alpha: float = 0.85,
        ) -> torch.Tensor:
            """The masks in the classes' colours over a dark, grey copy of the image.

            A pixel that is in several masks is white. With a lower alpha the image shows more and
            the masks less: 0.5 suits a picture that does not stand beside its image.

            Shape: image (3, H, W) 0..255, masks (C, H, W) bool -> (3, H, W) uint8.
            """
            colors = colors or backstage.class_colors(len(masks))
            grey = backstage.as_bytes(image).float().mean(dim=0, keepdim=True)
            picture = torchvision.utils.draw_segmentation_masks(
                ((1 - 0.8 * alpha) * grey).byte().expand(3, -1, -1), masks, alpha, colors
            )
            picture[:, masks.sum(dim=0) > 1] = 255
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
            """One column per image: the image, its true masks, its predicted masks and their IoU.

            Args:
                batch: images, masks and, for the title of a column, categories.
                preds: (N, C, H, W) of True and False.
                name: of the file in the run's folder.
                titles: one for each column.
                heading: of the whole figure.
            """
            class_names = class_names or self.data_spec()["class_names"]
            truths = batch["mask_tensor"] > 0
            ious = self.SegmentationScores(range(preds.shape[1])).update(preds, truths)
            images = backstage.as_bytes(batch["image"])
            count = len(preds)
            titles = list(titles or [""] * count)
            if "category" in batch:
                names = [class_names[k] for k in batch["category"].tolist()]
                titles = [f"{t}\n{n}".strip() for t, n in zip(titles, names, strict=True)]
            results = [
                backstage.describe_prediction(iou, pred)
                for iou, pred in zip(ious.tolist(), preds, strict=True)
            ]
            rows = {
                "image": (images, titles),
                "truth": (map(self.overlay, images, truths), [""] * count),
                "prediction": (map(self.overlay, images, preds), results),
            }
            figure, grid = backstage.picture_grid(self.dl_studio, len(rows), images)
            for panels, (label, (pictures, texts)) in zip(grid, rows.items(), strict=True):
                panels[0].set_ylabel(label, fontsize=13)
                for axes, picture, text in zip(panels, pictures, texts, strict=True):
                    axes.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
                    axes.set_title(text, fontsize=11)
            backstage.add_class_legend(figure, class_names, truths | preds, truths, preds)
            figure.suptitle(heading, fontsize=13)
            return self.dl_studio.save_figure(figure, name)

        def save_prediction_figure(
            self,
            batch: Mapping,
            preds: torch.Tensor,
            class_names: Sequence[str],
            number: int,
            first: int,
        ) -> Path:
            """predictions-NNN.png: truth and prediction of a test batch that begins at `first`."""
            batch = {key: value[:8] for key, value in batch.items()}  # more are too small to see
            preds = preds[:8]
            return self.save_panel_figure(
                batch,
                preds,
                f"predictions-{number:03d}.png",
                class_names=class_names,
                titles=[f"image {first + k}" for k in range(len(preds))],
                heading=f"Batch {number} of the {backstage.kind_of_images(self)}:\n"
                "truth and prediction as the scores count them",
            )

        def save_worst_figure(self, worst: list, class_names: Sequence[str]) -> Path:
            """worst.png: the test images with the lowest mean IoU, truth and prediction.

            worst: [(mean IoU, number of the image, its item, its pred), ...].
            """
            _, image_numbers, items, preds = zip(*worst, strict=True)
            keys = [key for key in ("image", "mask_tensor", "category") if key in items[0]]
            return self.save_panel_figure(
                {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in keys},
                torch.stack(preds),
                "worst.png",
                class_names=class_names,
                titles=[f"image {number}" for number in image_numbers],
                heading=f"The {backstage.kind_of_images(self)} with the lowest IoU\n"
                "and, among equals, the most wrong pixels",
            )

        def save_confusion_figure(self, scores: "SegmentationScores") -> Path:
            """confusion.png: which class is taken for which, in percent of the true class."""
            kind = backstage.kind_of_images(self)
            figure = backstage.draw_confusion(self.dl_studio, scores, kind)
            return self.dl_studio.save_figure(figure, "confusion.png")

        def save_loss_figure(self, history: recording.TrainingHistory) -> Path:
            """The training loss, and each of its terms, over the iterations."""
            palette = SegStudio.PALETTE
            figure = self.dl_studio.new_figure(figsize=(7, 4.2), dpi=120, layout="constrained")
            axes = figure.add_subplot()
            iterations, losses = zip(*history.column("loss"), strict=True)
            axes.plot(iterations, losses, marker=".", color=palette[0], label=history.loss_name)
            terms = [name for name in ("mse", "mae", "bce", "dice") if history.column(name)]
            for color, term in zip(palette[1:], terms, strict=False):
                points = zip(*history.column(term), strict=True)
                axes.plot(*points, color=color, linestyle="--", marker=".", label=f"{term} term")
            axes.set_xlabel("iteration")
            axes.set_ylabel(f"{history.loss_name} loss, mean of each interval")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            kind = backstage.kind_of_images(self, "images")
            axes.set_title(f"Training loss: {history.loss_name}, {kind}")
            axes.grid(alpha=0.3)
            figure.legend(loc="outside lower center", ncols=3)  # inside, it hides a curve
            return self.dl_studio.save_figure(figure, "loss.png")

        @staticmethod
        def probe_output_coverage(
            net: nn.Module, image_size: Sequence[int], *, in_channels: int = 3, probes: int = 8
        ) -> backstage.Coverage:
            """Find the output pixels that depend on the image.

            Feeds random images to any segmentation network in eval mode and marks the output
            pixels that change. A pixel may also stay the same because of the weights: a head of
            zeros, an activation that is dead. So all is done again with random weights and without
            activations. A pixel that does not change then either has no path from the image: no
            loss and no training can correct it. In DLStudio's mUnet these are three pixels in four.

            Averages of the whole image (global pooling, GroupNorm) are held fixed meanwhile. They
            change with the image, but carry no information about a pixel's own place. Operations
            that mix pixels by a matrix product, such as attention, count as a path.

            Shape: image_size (H, W); the maps are (H', W') of the network's output.
            Returns: a named tuple:
                fraction  float, the share of output pixels with a path from the image
                map       bool tensor: these pixels
                picture   uint8 tensor (3, 8H', 8W'): pixels that change in blue, pixels that do
                          not change with these weights in grey, pixels without a path in orange
                now       bool tensor: the pixels that change with these weights
            and .summary, the result in words.
            Errors: ValueError if the network has weights or outputs that are not finite, gives
            two outputs for one image (active dropout), or returns no floating-point (N, C, H, W),
            alone or in a tuple or dict.
            """
            weight = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
            generator = torch.Generator().manual_seed(0)
            images = [
                255 * torch.rand(1, in_channels, *image_size, generator=generator).to(weight)
                for _ in range(probes)
            ]
            with backstage.eval_mode(net), backstage.random_numbers_kept(), torch.no_grad():
                backstage.refuse_unsteady_network(net, images[0])
                now = backstage.changing_pixels(net, images)  # (H', W')
                with backstage.random_weights(net):
                    layers = backstage.changing_pixels(net, images, without_activations=True)
            reached = now | layers
            colors = torch.stack([backstage.rgb(SegStudio.PALETTE[k]) for k in (1, 7, 0)])
            picture = colors[reached.long() + now.long()].permute(2, 0, 1)  # (3, H', W')
            picture = picture.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
            return backstage.Coverage(reached.float().mean().item(), reached, picture, now)

        @staticmethod
        def check_network(
            net: nn.Module, image_size: Sequence[int] = (64, 64), **options: Any
        ) -> Any:
            """What is wrong with a network, and what to know about it: check_network.py.

            Print the result. The options are out_channels and batch_size.
            """
            return backstage.tool("check_network").check_network(net, image_size, **options)

        # ==== for the examples: parts of a run, and data by numbers of images ====================

        def part_of_run(self, name: str) -> "SegStudio.SemanticSegmentation":
            """The same data with a folder of its own, `name`, inside the run's folder.

            A script that trains several networks gives each a part, so that each can be resumed.
            """
            part = copy.copy(self)
            part.dl_studio = self.dl_studio.part_of_run(name)
            return part

        def load_shapes(
            self, train_images: int = 10000, test_images: int = 1000, validation_images: int = 0
        ) -> None:
            """Load the first `train_images` and `test_images`; draw archives that are missing.

            Validation images are extra images that SegStudio always draws. The scores during
            training use them: so training can use all training images, and only the final score
            uses the test images.
            """
            backstage.prepare_results_dir(self.dl_studio)
            train = backstage.load_shapes_archive(self, "train", train_images, sizes=(2000, 10000))
            test = backstage.load_shapes_archive(self, "test", test_images, sizes=(200, 1000))
            if validation_images:
                self.dataserver_validation = backstage.load_shapes_archive(
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
            backstage.prepare_results_dir(self.dl_studio)
            numbers_of_images = {"train": train_images, "test": test_images}
            with processes.one_after_another():  # the first one makes the cache
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

    # ==== for the examples: files and flags ======================================================

    write_atomically = staticmethod(backstage.write_atomically)
    example_flags = staticmethod(backstage.example_flags)
    run_example = staticmethod(backstage.run_example)

"""Keys of the data: where images are, artificial tails, frequency bins, folds."""

from typing import Literal

from pydantic import Field, model_validator

from src.config.scenes import Scenes
from src.config.section import VOLATILE, Section
from src.errors import some

# columns of folds.csv, in order; every other column of folds.csv and test.csv is from data.columns
OURS = (
    "image_id", "path", "class_id", "label", "fold", "group_id", "width", "height", "sha1", "phash",
)  # fmt: skip


class Data(Section):
    source: Literal["folder", "csv", "list", "coco", "torchvision", "digits"] = Field(
        "folder",
        description="folder: train/<classID>_<className>/*.jpg and test/<imageID>.jpg; csv: tables "
        "plus image roots; list: text files of `path label` lines (ImageNet-LT, Places-LT); coco: "
        "JSON with images, annotations and categories (iNaturalist); torchvision: one of its data "
        "sets, written to root once; digits: scikit-learn's handwritten digits, likewise",
    )
    root: str = Field("data/raw/my_competition", description="directory of the competition's files")
    name: str | None = Field(
        None, description="the dataset's directory under runs/; null: the last part of root"
    )
    train: str = Field(
        "train",
        description="under root. folder source: directory; csv, list and coco source: file",
    )
    class_folders: Literal["id_name", "whole", "leaf"] = Field(
        "id_name",
        description="folder source: what the class id is. id_name: of train's folders, what stands "
        "before the first underscore, and the class name what stands after it; whole: their whole "
        "names; leaf: the whole name of the folder that an image lies in, however deep",
    )
    test: str | None = Field(
        "test",
        description="like train, for the test images; csv source: a directory of images will do, "
        "too, whose names are their ids; null: there are none",
    )
    sample_submission: str | None = Field(
        "sample_submission.csv",
        description="under root; fixes the ids, order and columns of the submission. The default "
        "is used only where the file exists",
    )
    solution: str | None = Field(
        "solution.csv",
        description="under root; true labels of some test images, used by 06 to print a score and "
        "never to choose anything. The default is used only where the file exists; without it, "
        "labels that the test folders, list or JSON carry are used; null: none",
    )
    image_column: str = Field(
        "image_id", description="csv source and data.metadata: column with the image's id"
    )
    label_column: str = Field("class_id", description="csv source: column with the class id")
    one_hot: bool = Field(
        False,
        description="csv source: train has no label_column, but for each class a column that is "
        "called as its id and holds 0 and 1: all columns that do, but group_column and columns",
    )
    name_column: str | None = Field(None, description="csv source: column with the class's name")
    group_column: str | None = Field(
        None,
        description="csv source: images that share a value (an individual, a session) share a fold",
    )
    columns: tuple[str, ...] = Field(
        (),
        description="columns of your own (country, month, observation) that 01 … 06 keep beside "
        "every image, as text: of the train and test tables (csv source), of the images in the "
        "JSON (coco source, empty where an image lacks one), or of data.metadata",
    )
    observation: str | None = Field(
        None,
        description="which of data.columns says of what specimen an image is: images that share a "
        "value are never split over folds, share a prediction (section observations) and count "
        "once in the scores of 04 and 06; an image without a value stands alone. A sample "
        "submission whose ids are in a column of that name has a row per observation; null: none",
    )
    metadata: str | None = Field(
        None,
        description="under root; a CSV with the ids of train images, test images or both, and "
        "those of data.columns that their own table lacks. Ids of no image are passed over",
    )
    train_images: str = Field(
        "", description="csv, list and coco source: directory of train images, under root"
    )
    test_images: str = Field(
        "", description="csv, list and coco source: directory of test images, under root"
    )
    suffix: str = Field(
        "",
        description="csv source: what to add to an id to get the file's name; *: nothing is known "
        "of it but that it is the one image of that name, with whatever ending or none, anywhere "
        "below train_images or test_images; directories and endings in ids that no image has are "
        "passed over",
    )
    torchvision: Literal[
        "CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "KMNIST", "SVHN", "STL10", "GTSRB", "DTD",
        "Food101", "Flowers102", "FGVCAircraft", "OxfordIIITPet", "StanfordCars",
    ] = Field(
        "CIFAR10", description="torchvision source: which data set, read from root/torchvision"
    )  # fmt: skip
    download: bool = Field(
        False,
        description="torchvision source: let torchvision download what is missing",
        json_schema_extra=VOLATILE,
    )
    limit: int | None = Field(
        None,
        ge=2,
        description="to try things out, and what --smoke sets: about so many training images, each "
        "class in proportion and with one at least, and a quarter as many test images, which are "
        "then all that the submission is about; null: all",
    )
    bad_images: Literal["stop", "skip"] = Field(
        "stop", description="what to do with unreadable, truncated or empty image files"
    )
    near_duplicates: int | None = Field(
        4,
        ge=0,
        le=8,
        description="largest difference in bits (of 64) between the perceptual hashes of two "
        "images that count as the same photo; null: only identical files count. Different birds "
        "in the same pose were seen 6 apart",
    )
    scenes: Scenes = Field(
        default_factory=Scenes,
        description="photographs in bursts: images of one scene are never split over folds",
    )
    resize: int | None = Field(
        None,
        ge=16,
        description="make a one-off copy of all images with this short side in pixels; null: no",
    )
    resize_quality: int = Field(92, ge=50, le=100, description="JPEG quality of that copy")
    workers: int = Field(
        2,
        ge=0,
        description="processes that read images, per GPU; 0 reads in the main process. The "
        "images they produce are the same for any number",
        json_schema_extra=VOLATILE,
    )
    cache: Literal["none", "memory", "device"] = Field(
        "none",
        description="training: decode images once and keep them in memory, or on the device, "
        "where they are then also shifted and mirrored (augment.crop padded with nothing but hflip "
        "and vflip beside it). The images are the same, bit by bit",
        json_schema_extra=VOLATILE,
    )

    @model_validator(mode="after")
    def _columns(self):
        names = self.columns
        if taken := sorted({n for n in names if n in OURS or names.count(n) > 1 or not n.strip()}):
            raise ValueError(
                f"columns: {some(taken)} is empty, named twice, or a column that 01 writes itself "
                f"({', '.join(OURS)}); leave it out, or rename it in your table"
            )
        if self.observation is not None and self.observation not in names:
            raise ValueError(
                f"observation: {self.observation!r} is not among data.columns ({list(names)}); add "
                "it there, so that train and test images have it"
            )
        if self.metadata is not None and not names:
            raise ValueError("metadata is read for data.columns, which names none")
        if self.one_hot and self.source != "csv":
            raise ValueError(f"one_hot is of source csv, and source is {self.source}")
        if self.one_hot and (both := {"label_column", "name_column"} & {*self.changed()}):
            raise ValueError(
                f"one_hot says that columns of 0 and 1 are the classes, and {some(sorted(both))} "
                "that one column names them; leave one out"
            )
        if "class_folders" in self.changed() and self.source not in ("folder", "torchvision"):
            raise ValueError("class_folders is of source folder; the others have ids of their own")
        return self


class Longtail(Section):
    profile: Literal["exp", "step"] | None = Field(
        None, description="cut the classes to a long tail (exp) or two levels (step); null: no"
    )
    ratio: float = Field(
        100.0, ge=1, description="images of the largest class over images of the smallest"
    )
    seed: int = Field(0, ge=0, description="which images of each class stay")


class Bins(Section):
    mode: Literal["thresholds", "terciles", "halves"] = Field(
        "thresholds",
        description="bands of class size: many/medium/few by thresholds or by thirds of the "
        "classes, or head/tail halves",
    )
    many: int = Field(100, ge=1, description="images; a class with more than this is in `many`")
    few: int = Field(20, ge=1, description="images; a class with fewer than this is in `few`")

    @model_validator(mode="after")
    def _ordered(self):
        if self.mode == "thresholds" and self.few > self.many + 1:
            raise ValueError(f"few ({self.few}) must not be above many ({self.many})")
        return self


class Folds(Section):
    k: int = Field(5, ge=2, le=50, description="number of folds")
    seed: int = Field(0, ge=0, description="which images go to which fold")

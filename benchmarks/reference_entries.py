"""What configs/METHODS.md says of each method; benchmarks/reference.py adds what was measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """row: of the benchmarks' tables, as in `row_title` · config: YAML, in flow style"""

    name: str
    use: str
    config: str
    paper: str
    code: str
    row: str | None = None


GROUPS: dict[str, tuple[Entry, ...]] = {
    "Losses": (
        Entry(
            "balanced softmax",
            "first thing to try on any tail",
            "train: {criterion: {name: balanced_softmax}}",
            "Ren et al., NeurIPS 2020",
            "src/losses/balanced_softmax.py",
            "balanced_softmax",
        ),
        Entry(
            "logit adjustment",
            "the same loss with a strength τ: above 1 for more weight on the tail",
            "train: {criterion: {name: logit_adjusted, tau: 1.0}}",
            "Menon et al., ICLR 2021",
            "src/losses/balanced_softmax.py",
            "logit_adjusted",
        ),
        Entry(
            "LDAM-DRW",
            "training from scratch; margins for rare classes, then re-weighting",
            "{model: {head: cosine, cosine_scale: 30}, "
            "train: {criterion: {name: ldam}, deferred: {weights: true}}}",
            "Cao et al., NeurIPS 2019",
            "src/losses/ldam.py",
            "ldam_drw",
        ),
        Entry(
            "deferred re-weighting (DRW)",
            "over any loss: plain training first, class weights at the end",
            "train: {deferred: {weights: true, start: 0.8}}",
            "Cao et al., NeurIPS 2019",
            "src/losses/base.py",
            "ce_drw",
        ),
        Entry(
            "deferred re-sampling (DRS)",
            "as DRW, with balanced batches instead of weights",
            "train: {deferred: {sampling: true, start: 0.8}}",
            "Cao et al., NeurIPS 2019",
            "src/training/job.py",
            "ce_drs",
        ),
        Entry(
            "focal",
            "many easy images; does not know about class counts",
            "train: {criterion: {name: focal, gamma: 1.0}}",
            "Lin et al., ICCV 2017",
            "src/losses/focal.py",
            "focal",
        ),
        Entry(
            "class-balanced focal",
            "counts saturate: near-duplicates in the frequent classes",
            "train: {criterion: {name: class_balanced, gamma: 1.0, form: sigmoid}}",
            "Cui et al., CVPR 2019",
            "src/losses/class_balanced.py",
            "cb_focal",
        ),
        Entry(
            "LADE",
            "as balanced softmax, with a term that separates the classes' logits from the prior",
            "train: {criterion: {name: lade}}",
            "Hong et al., CVPR 2021",
            "src/losses/lade.py",
            "lade",
        ),
        Entry(
            "seesaw",
            "many classes that are confused with each other; LifeCLEF winners' choice",
            "train: {criterion: {name: seesaw}}",
            "Wang et al., CVPR 2021",
            "src/losses/seesaw.py",
            "seesaw",
        ),
    ),
    "Samplers": (
        Entry(
            "square-root",
            "a mild re-balancing that seldom hurts",
            "train: {sampler: square_root}",
            "Mahajan et al., ECCV 2018",
            "src/data/samplers.py",
            "square_root",
        ),
        Entry(
            "class-balanced",
            "every class as often; over-fits the tail when features are trained with it",
            "train: {sampler: class_balanced}",
            "Kang et al., ICLR 2020",
            "src/data/samplers.py",
            "class_balanced",
        ),
        Entry(
            "progressively balanced",
            "from instance to class-balanced over the epochs",
            "train: {sampler: progressive}",
            "Kang et al., ICLR 2020",
            "src/data/samplers.py",
            "progressive",
        ),
        Entry(
            "reversed",
            "rare classes most; BBN's second stream",
            "train: {sampler: reversed}",
            "Zhou et al., CVPR 2020",
            "src/data/samplers.py",
            "reversed",
        ),
    ),
    "Mixing": (
        Entry(
            "mixup",
            "long trainings of small data sets",
            "train: {mixing: {mixup: 1.0}}",
            "Zhang et al., ICLR 2018",
            "src/training/mixing.py",
            "mixup",
        ),
        Entry(
            "CutMix",
            "as mixup, where objects fill the image",
            "train: {mixing: {cutmix: 1.0}}",
            "Yun et al., ICCV 2019",
            "src/training/mixing.py",
            "cutmix",
        ),
        Entry(
            "Remix",
            "mixup whose labels lean to the rarer class",
            "train: {mixing: {mixup: 1.0, remix: true}}",
            "Chou et al., ECCV workshops 2020",
            "src/training/mixing.py",
            "remix",
        ),
        Entry(
            "manifold mixup",
            "mixing of hidden features at a random depth",
            "train: {mixing: {manifold: 1.0}}",
            "Verma et al., ICML 2019",
            "src/training/mixing.py",
            "manifold",
        ),
        Entry(
            "manifold mixup, two samplers",
            "the second image comes from a re-balancing sampler",
            "train: {mixing: {manifold: 1.0}, second_sampler: reversed}",
            "Zhou et al., CVPR 2020",
            "src/training/mixing.py",
            "manifold_two",
        ),
    ),
    "Networks": (
        Entry(
            "BBN",
            "training from scratch, twice the time per step",
            "{model: {network: bbn}, train: {second_sampler: reversed}}",
            "Zhou et al., CVPR 2020",
            "src/networks/bbn.py",
            "bbn",
        ),
        Entry(
            "knowledge transfer (KT)",
            "nearest class means are right where the linear classifier is not",
            "model: {network: kt}",
            "methods.md §7",
            "src/networks/kt.py",
            "kt",
        ),
        Entry(
            "task separator",
            "bins that differ so much that one classifier cannot serve all",
            "{model: {network: task_separator}, train: {second_sampler: class_balanced}}",
            "methods.md, source 1",
            "src/networks/task_separator.py",
            "task_separator",
        ),
        Entry(
            "RIDE",
            "training from scratch with time to spare: diverse experts on shared early stages",
            "{model: {network: ride, head: cosine, cosine_scale: 30}, "
            "train: {criterion: {name: ldam}, deferred: {weights: true}}}",
            "Wang et al., ICLR 2021",
            "src/networks/ride.py",
            "ride",
        ),
        Entry(
            "GPaCo",
            "long trainings with strong augmentation; contrast between classes and samples",
            "{model: {network: paco}, "
            "train: {second_sampler: same, criterion: {name: balanced_softmax}}}",
            "Cui et al., TPAMI 2023",
            "src/networks/paco.py",
            "paco",
        ),
        Entry(
            "anti-aliasing",
            "objects at any position; ResNets",
            "{model: {backbone: resnet50, anti_alias: true}}",
            "Zhang, ICML 2019",
            "src/networks/anti_alias.py",
            "anti_alias",
        ),
        Entry(
            "frequency classifier",
            "a second task: is the class many, medium or few",
            "train: {auxiliaries: [{name: frequency, weight: 1.0}]}",
            "methods.md, source 1",
            "src/auxiliaries/frequency.py",
            "multi_task",
        ),
    ),
    "Stage 2: heads on frozen features": (
        Entry(
            "cRT",
            "the network was trained with cross-entropy and has not memorised its images",
            "stage2: [{head: crt}]",
            "Kang et al., ICLR 2020",
            "src/rebalance/crt.py",
            "ce/crt",
        ),
        Entry(
            "multi-task cRT",
            "cRT with an adapter that also learns the bin",
            "stage2: [{head: crt, adapter: 64, frequency_weight: 1.0}]",
            "methods.md, source 1",
            "src/rebalance/crt.py",
            "ce/multi_task",
        ),
        Entry(
            "LWS",
            "one scale per class: too few images for cRT",
            "stage2: [{head: lws}]",
            "Kang et al., ICLR 2020",
            "src/rebalance/lws.py",
            "ce/lws",
        ),
        Entry(
            "NCM",
            "nothing is trained; a handful of images per class",
            "stage2: [{head: ncm}]",
            "Kang et al., ICLR 2020",
            "src/rebalance/ncm.py",
            "ce/ncm",
        ),
        Entry(
            "MaxNorm, weight decay, class-balanced loss",
            "with a stage 1 of searched weight decay",
            "stage2: [{head: maxnorm}]",
            "Alshammari et al., CVPR 2022",
            "src/rebalance/maxnorm.py",
            "ce/maxnorm",
        ),
        Entry(
            "cosine head from class means",
            "features whose norm follows the class counts",
            "stage2: [{head: cosine}]",
            "Gidaris & Komodakis, CVPR 2018",
            "src/rebalance/cosine.py",
            "ce/cosine",
        ),
    ),
    "After training": (
        Entry(
            "τ-normalisation",
            "cross-entropy networks; tried by 04 and dropped where it does not help",
            "posthoc: {steps: [tau_norm]}",
            "Kang et al., ICLR 2020",
            "src/fusion/tau_norm.py",
            "ce/tau",
        ),
        Entry(
            "logit adjustment afterwards",
            "any network of plain cross-entropy, also one of somebody else; seconds",
            "posthoc: {steps: [logit_adjustment]}",
            "Menon et al., ICLR 2021",
            "src/fusion/logit_adjustment.py",
            "ce/prior",
        ),
        Entry(
            "searched weight decay (or any key)",
            "first with a new backbone: `02_train_stage1.py --search`",
            "search: {keys: {train.weight_decay: {low: 1.0e-5, high: 1.0e-1, log: true}}}",
            "Alshammari et al., CVPR 2022",
            "src/training/search.py",
            "ce_wd",
        ),
        Entry(
            "searched heads",
            "after 02: `03_train_stage2.py --search`, seconds per trial",
            "{stage2: [{head: maxnorm}], search: {stage2: {trials: 100}}}",
            "Alshammari et al., CVPR 2022",
            "src/rebalance/search.py",
        ),
    ),
}

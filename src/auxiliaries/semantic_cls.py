"""Semantic CLS token: the name of the image's class goes through the same transformer as a second
class token (from a report on TransFG for long-tailed food).

H_c: text embedding of the names of class c, [E] · P: E → D, learned · f_i: image i's features, [D],
what its own class token became · s_i: what P(H_{y_i}) became beside the tokens of image i, [D]

    L         = L(z, y) + λ L_con + β L_con_CLS
    L_con     = 1/B² Σ_i Σ_j  1 − cos(f_i, f_j)  where y_i = y_j, else max(cos(f_i, f_j) − α, 0)
    L_con_CLS = 1/B² Σ_i Σ_j  1 − cos(f_i, s_j)  where y_i = y_j, else max(cos(f_i, s_j) − α, 0)

L_con is TransFG's own contrast, and what this adds on other networks. The sums are over the images
that one process passes forward together, i = j included.

The source does not say who attends to whom. The semantic token holds the label, so an image that
read it would be classified by it, and in inference there is none. Hence here it reads the image's
tokens and no token of the image reads it (src/networks/guest.py): features and logits in training
are those of inference, what is saved is the network as it is without, and 05 needs no text. It has
no position embedding. With TransFG it reads, in the last block, the patches that the image's class
token chose. The source's H is the mean of BERT's hidden states; here it is the unit vector
of whatever model `text` names.
"""

from contextlib import AbstractContextManager

import torch
from torch import nn

from src.artifacts.dataset import Classes
from src.auxiliaries.base import Auxiliary
from src.config.auxiliaries import SemanticCLS as Settings
from src.data.dataset import Batch
from src.errors import UserError
from src.networks.base import Network, Output, Progress
from src.networks.guest import Guest, no_guests
from src.networks.transfg import TransFG, contrast


class SemanticCLS(Auxiliary):
    """`projection` is P. Errors: UserError for a backbone that is no vision transformer, or classes
    without text."""

    def __init__(self, settings: Settings, network: Network, classes: Classes):
        super().__init__()
        backbone = network.backbone
        if reason := no_guests(backbone):
            raise UserError(
                "train.auxiliaries: semantic_cls puts a token into a vision transformer, and "
                f"{reason}. Choose another model.backbone, for example vit_base_patch16_224, or, "
                "for a CNN, model.head_init=text"
            )
        if classes.text is None:
            raise UserError(
                "train.auxiliaries: semantic_cls needs the text embeddings of the class names, and "
                "this dataset has none; set the section `text`"
            )
        self.settings, own = settings, 0.0 if isinstance(network, TransFG) else 1.0
        self.contrast = own if settings.contrast is None else settings.contrast
        self.guest = Guest(backbone)
        self.projection = nn.Linear(classes.text.shape[1], backbone.embed_dim, bias=False)
        text = torch.as_tensor(classes.text, dtype=torch.float32)
        self.register_buffer("text", text, persistent=False)  # [K, E]

    def beside(self, batch: Batch) -> AbstractContextManager:
        return self.guest.visits(self.projection(self.text[batch.labels]))  # [N, D]

    def forward(self, output: Output, batch: Batch, progress: Progress) -> torch.Tensor:
        semantic, settings = self.guest.left(), self.settings  # [N, D]
        loss = settings.beta * contrast(output.features, batch.labels, settings.margin, semantic)
        if self.contrast:
            own = contrast(output.features, batch.labels, settings.margin)
            loss = loss + self.contrast * own
        return loss

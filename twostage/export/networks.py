"""The two exported networks in the roles of their originals: a ProposalGenerator and an ImageTextModel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from twostage.export.manifest import ClipImageFacts, ExportError, StageOneFacts
from twostage.export.runtime import Session
from twostage.maskformer.inputs import padded_batch
from twostage.proposals.maskformer import MaskFormerProposalsConfig, Queries, to_proposals
from twostage.types import Proposals, TextBank


class OnnxProposals:
    """Stage one from its file: what MaskFormerProposals does, with onnxruntime for the network."""

    def __init__(self, config: MaskFormerProposalsConfig, session: Session, facts: StageOneFacts) -> None:
        """
        Raises:
            ExportError: classes are asked for, and the file was exported without them.
        """
        if config.names_masks and facts.says == "masks":
            raise ExportError(
                "PROPOSALS.OPTIONS.NAMES_MASKS: this folder was exported without stage one's classes. Leave "
                "the option off, or export again with it on."
            )
        self.config, self.session, self.facts = config, session, facts
        self.names_masks = config.names_masks
        self._mean = torch.tensor(facts.mean).view(3, 1, 1)
        self._std = torch.tensor(facts.std).view(3, 1, 1)

    @torch.no_grad()
    def propose(self, images: Sequence[Tensor], text: TextBank | None = None) -> list[Proposals]:
        """images: RGB uint8 (3, H, W) -> masks (Q, H, W) float32 in [0, 1] on the images' device."""
        return [self._one(image, text) for image in images]

    def _one(self, image: Tensor, text: TextBank | None) -> Proposals:
        pixels = padded_batch([image.cpu()], self._mean, self._std, self.facts.size_divisibility)
        fed = {"pixels": pixels}
        if self.facts.says == "text":
            fed["text"] = self._text(text)
        found = {name: value[0].to(image.device) for name, value in self.session.run(**fed).items()}
        asked = self.names_masks and (text is not None or self.facts.says == "linear")
        seen = Queries(
            found["masks"],
            found["embeddings"],
            found["classes"] if asked else None,
            (pixels.shape[-2], pixels.shape[-1]),
        )
        return to_proposals(seen, (image.shape[1], image.shape[2]), self.config.min_score)

    def _text(self, text: TextBank | None) -> Tensor:
        """(K, S, D); without a text, or where nobody asks for classes, one class that stands for nothing."""
        if text is None or not self.names_masks:
            return torch.zeros(1, 1, self.facts.embedding_dim)
        if text.dim != self.facts.embedding_dim:
            raise ExportError(
                f"Stage one compares with text {self.facts.embedding_dim} wide, this one has {text.dim} "
                "columns: it is of another CLIP model than the one exported."
            )
        return by_class(text)


def by_class(text: TextBank) -> Tensor:
    """(K, S, D) float32 on the CPU: the rows of each class, its first repeated up to the most that any has.

    The best of a class stays the best, which is all that the class head looks for.
    """
    features, class_of = text.features.cpu().float(), text.class_of.cpu()
    rows = [(class_of == k).nonzero()[:, 0] for k in range(text.num_classes)]
    most = max(len(own) for own in rows)
    index = torch.stack([torch.cat([own, own[:1].expand(most - len(own))]) for own in rows])
    return features[index]


class OnnxImageTower:
    """CLIP's image tower from its file; it has no text tower, so words need their features."""

    def __init__(self, session: Session, facts: ClipImageFacts) -> None:
        self.session = session
        self.image_size = facts.image_size
        self.mean, self.std, self.dim = facts.mean, facts.std, facts.dim

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) normalised pixels -> (B, D) float32 rows of length one, on their device.

        Raises:
            ExportError: the crops are of another size than the file takes.
        """
        size_hw = (pixels.shape[-2], pixels.shape[-1])
        if size_hw != self.image_size:
            raise ExportError(
                f"CLASSIFIER.OPTIONS.IMAGE_SIZE: this folder takes crops of {self.image_size} pixels, got "
                f"{size_hw}. Leave the option as it was, or export again with it."
            )
        return self.session.run(pixels=pixels.float())["features"].to(pixels.device)

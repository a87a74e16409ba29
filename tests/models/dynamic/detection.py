"""A detection cascade like MTCNN: a small network looks everywhere, two larger ones only where the one before saw something.

Eight candidates of the first network are gone through from the best: one that a better one overlaps is skipped; what the
second network refuses never reaches the third.

Source: Zhang, Zhang, Li and Qiao, Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks, 2016
(arXiv 1604.02878), sections II and III.
"""

from __future__ import annotations

import torch
from tests.models.dynamic.entry import Dynamic, batch_of, coarse, picture, standardise, threshold_at
from tests.models.entry import calibrate_batch_norm, randomise
from torch import nn
from torch.nn import functional

SIZE, WINDOW, STRIDE, CANDIDATES = 64, 12, 4, 8


class Proposal(nn.Module):
    """P-Net: a score and a box correction at each position, fully convolutional."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 10, 3),
            nn.BatchNorm2d(10),
            nn.PReLU(10),
            nn.MaxPool2d(2, 2, ceil_mode=True),
            nn.Conv2d(10, 16, 3, stride=2),
            nn.BatchNorm2d(16),
            nn.PReLU(16),
            nn.Conv2d(16, 32, 3),
            nn.BatchNorm2d(32),
            nn.PReLU(32),
        )
        self.score = nn.Conv2d(32, 1, 1)
        self.box = nn.Conv2d(32, 4, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.body(x)
        return torch.sigmoid(self.score(x))[0, 0], 0.2 * torch.tanh(self.box(x))[0]


class Refinement(nn.Module):
    """R-Net and O-Net: a score and a box correction (and landmarks) for one crop."""

    def __init__(self, size: int, channels: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, channels, 3),
            nn.BatchNorm2d(channels),
            nn.PReLU(channels),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(channels, 2 * channels, 3),
            nn.BatchNorm2d(2 * channels),
            nn.PReLU(2 * channels),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Flatten(),
        )
        with torch.no_grad():
            features = self.body.eval()(torch.zeros(1, 3, size, size)).shape[1]
        self.hidden = nn.Linear(features, 64)
        self.score = nn.Linear(64, 1)
        self.box = nn.Linear(64, outputs)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.hidden(self.body(x)))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.features(x)
        return torch.sigmoid(self.score(y))[0, 0], 0.2 * torch.tanh(self.box(y))[0]


def overlap(box: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """Intersection over union of (y, x, y, x) boxes f32[4] and f32[N, 4]."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp(min=0).prod(dim=1)
    size = (box[2:] - box[:2]).prod()
    sizes = (others[:, 2:] - others[:, :2]).prod(dim=1)
    return common / (size + sizes - common)


class Cascade(nn.Module):
    """The three networks."""

    def __init__(self) -> None:
        super().__init__()
        self.proposal = Proposal()
        self.refine = Refinement(24, 14, 4)
        self.output = Refinement(48, 16, 14)
        self.thresholds = [0.5, 0.5, 0.5]

    def crop(self, image: torch.Tensor, y: int, x: int, size: int) -> torch.Tensor:
        window = image[:, :, y : y + WINDOW, x : x + WINDOW]
        return functional.interpolate(window, size=(size, size), mode="bilinear", align_corners=False)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
        """From f32[1, 3, 64, 64]: up to 8 boxes f32[8, 4], their landmarks f32[8, 10], and how many there are."""
        scores, corrections = self.proposal(image)
        best, places = scores.flatten().topk(CANDIDATES)
        rows, columns = places // scores.shape[1], places % scores.shape[1]
        corners = STRIDE * torch.stack([rows, columns], dim=1).to(image.dtype)
        boxes = torch.cat([corners, corners + WINDOW], dim=1)
        boxes = boxes + WINDOW * corrections.flatten(1)[:, places].T
        found = torch.zeros(CANDIDATES, 4, dtype=image.dtype)
        landmarks = torch.zeros(CANDIDATES, 10, dtype=image.dtype)
        alive = torch.ones(CANDIDATES, dtype=torch.bool)
        count = 0
        for k in range(CANDIDATES):
            if best[k] < self.thresholds[0]:
                break
            if not alive[k]:
                continue
            alive = alive & (overlap(boxes[k], boxes) < 0.3)
            y, x = STRIDE * int(rows[k]), STRIDE * int(columns[k])
            score, correction = self.refine(self.crop(image, y, x, 24))
            if score > self.thresholds[1]:
                box = boxes[k] + WINDOW * correction
                score, final = self.output(self.crop(image, y, x, 48))
                if score > self.thresholds[2]:
                    found[count] = box + WINDOW * final[:4]
                    landmarks[count] = final[4:]
                    count += 1
        return found, landmarks, count


def build() -> nn.Module:
    model = Cascade()
    randomise(model, 131)
    (images,) = batch_of(picture(SIZE))
    crops = images.unfold(2, WINDOW, 17).unfold(3, WINDOW, 17).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, WINDOW, WINDOW)
    small, large = (functional.interpolate(crops, size=(n, n), mode="bilinear", align_corners=False) for n in (24, 48))
    for network, given in ((model.proposal, images), (model.refine, small), (model.output, large)):
        calibrate_batch_norm(network.body, (given,))
    model.eval()
    with torch.no_grad():
        features = model.proposal.body(images)
        model.proposal.score.bias.zero_()
        values = model.proposal.score(features)
        model.proposal.score.weight.mul_(2.0 / coarse(float(values.std())))
        model.proposal.score.bias.fill_(-2.0 - 2.0 * coarse(float(values.mean() / values.std())))
        order = torch.sigmoid(model.proposal.score(features)).flatten(1).topk(CANDIDATES).values
        model.thresholds[0] = threshold_at(order[:, CANDIDATES // 2], 0.5)
        for k, (network, given) in enumerate(((model.refine, small), (model.output, large))):
            standardise(network.score, network.features(given), spread=1.5)
            model.thresholds[k + 1] = threshold_at(torch.sigmoid(network.score(network.features(given))), 0.6)
    return model


ENTRIES = (Dynamic("detection", build, picture(SIZE), "Zhang et al. (arXiv 1604.02878)", by_place=True),)

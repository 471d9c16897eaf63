# SPDX-License-Identifier: Apache-2.0
"""Frames of MSR-VTT 1k-A as patch features of a frozen DINOv2-S, and their captions."""

import csv
import io
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from token_quality import load, square

SIDE = 98  # 7 x 7 patches


def videos_of(folder: Path, frames: int) -> dict[str, list[tuple[str, int]]]:
    """Return at most ``frames`` (file of the archive, left or right half) of each video, evenly over its length."""
    with zipfile.ZipFile(folder / 'msrvtt_1kA_frame_pairs.zip') as archive:
        files = sorted(name for name in archive.namelist() if name.endswith('.jpg'))
    found: dict[str, list[tuple[str, int]]] = {}
    for name in files:
        found.setdefault(name.split('/')[0], []).extend([(name, 0), (name, 320)])
    return {
        video: [all_of[round(i * (len(all_of) - 1) / max(1, frames - 1))] for i in range(frames)]
        if len(all_of) > frames
        else all_of
        for video, all_of in found.items()
    }


def captions_of(folder: Path) -> dict[str, str]:
    """Return the caption of each video."""
    with (folder / 'MSRVTT_JSFUSION_test.csv').open() as file:
        return {row['video_id']: row['sentence'] for row in csv.DictReader(file)}


@torch.inference_mode()
def patch_vectors(data: Path, videos: dict[str, list[tuple[str, int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors (N, L, 384) in fp16, class token and 7 x 7 patches a frame, and their mask (N, L)."""
    vit, most = load(data)[0], max(map(len, videos.values()))
    per_frame = 1 + (SIDE // 14) ** 2
    vectors = torch.zeros(len(videos), most * per_frame, 384, dtype=torch.float16)
    mask = torch.zeros(vectors.shape[:2], dtype=torch.bool)
    with zipfile.ZipFile(data / 'video' / 'msrvtt_1kA_frame_pairs.zip') as archive:
        for row, halves in enumerate(videos.values()):
            pictures = []
            for name, left in halves:
                pair = Image.open(io.BytesIO(archive.read(name))).convert('RGB')
                pictures.append(square(pair.crop((left, 0, left + 320, 240)), SIDE))
            tokens = F.normalize(vit(torch.stack(pictures))[0], dim=-1).flatten(0, 1)
            vectors[row, : len(tokens)], mask[row, : len(tokens)] = tokens.half(), True
    return vectors, mask

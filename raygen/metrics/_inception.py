"""The `inception` network: Inception v3 of 2015, in torch-fidelity's form, over which FID and KID are published.

Images are rounded to 8 bits, as published values were computed from image files, and resized to 299×299 as
TensorFlow 1 did. Its weights (92 MB) are downloaded once, or read from a file; another network never takes their
place. A file that is not the canonical one is used, and every value over it says so: `canonical` is false.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raygen.errors import DataError
from raygen.metrics._features import FeatureNetwork

CHUNK_IMAGES = 50
CANONICAL_SHA256 = "6726825d"  # how it begins; torch-fidelity has it in the file's name
DOWNLOAD_TIMEOUT_S = 30.0


def load(weights: Path | None) -> FeatureNetwork:
    """The network with downloaded weights, or those of a file; raises DataError where it cannot be had."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    except ImportError as error:
        raise DataError(
            "the inception network needs torch-fidelity: pip install 'raygen[inception]', or --network random"
        ) from error
    path = _downloaded(URL_INCEPTION_V3) if weights is None else weights.expanduser()
    network, digest = _read(path)

    def extract(images: Tensor) -> Tensor:
        pixels = (images.expand(-1, 3, -1, -1) * 255).round().clamp(0, 255).to(torch.uint8)
        (found,) = network.to(images.device)(pixels)
        assert isinstance(found, Tensor)
        return found

    facts = {"weights": digest[:16], "canonical": digest.startswith(CANONICAL_SHA256)}
    return FeatureNetwork(name="inception", extract=extract, chunk_images=CHUNK_IMAGES, facts=facts)


def _downloaded(url: str) -> Path:
    """The weights in torch's hub folder, downloaded first where they are not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if path.is_file():
        return path
    timeout_s = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=CANONICAL_SHA256, progress=False)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"the weights of the inception network cannot be downloaded from {url} ({error}); "
            "name a copy with --fid-weights FILE, or use --network random"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout_s)
    return path


def _read(path: Path) -> tuple[Any, str]:
    """The network with the weights of a file, and the file's SHA-256."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        # torch-fidelity unpickles without care; a file that this refuses could run any code.
        torch.load(path, map_location="cpu", weights_only=True)
        network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    # Unpickling raises whatever damaged bytes lead it to: OSError, RuntimeError, EOFError, IndexError...
    except Exception as error:
        reason = getattr(error, "strerror", None) or "not the weights of torch-fidelity's Inception v3"
        raise DataError(
            f"cannot read {path} ({reason}); --fid-weights takes the file weights-inception-2015-12-05-6726825d.pth "
            "of torch-fidelity"
        ) from error
    return network, digest

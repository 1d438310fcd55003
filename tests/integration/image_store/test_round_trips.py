"""What a guest sees is the same after any way through the store: raw and qcow2 in, raw and qcow2 out."""

from pathlib import Path

import pytest
from remuda_image_store.testing import QCOW2, RAW, Cloud
from remuda_image_store.testing_disks import checked, file_system, qcow2_of, qemu_img, qemu_io, random_sparse


async def assert_comes_back(cloud: Cloud, disk: bytes, directory: Path) -> None:
    one, two = [await cloud.images(await cloud.serve()) for _ in range(2)]
    uploads = {
        "raw": await cloud.create(disk),
        "qcow2": await cloud.create(qcow2_of(disk, directory), QCOW2),
        "compressed": await cloud.create(qcow2_of(disk, directory, "-c"), QCOW2),
    }
    answers = {kind: (await one.upload(sample)).image for kind, sample in uploads.items()}
    assert len({answer.manifest_digest for answer in answers.values()}) == 1
    assert len({answer.stored_bytes for answer in answers.values()}) == 1
    for sample in uploads.values():
        assert await two.download(sample) == disk
    files = [await images.download(uploads["raw"], 0, QCOW2) for images in (one, two)]
    # Any replica writes the same file: a download goes on at another one.
    assert files[0] == files[1]
    back = checked(files[0], directory)
    assert back[: len(disk)] == disk
    assert not any(back[len(disk) :])
    for offset in {1, len(files[0]) // 3, len(files[0]) // 2 + 7, len(files[0]) - 1, len(files[0])}:
        assert await two.download(uploads["raw"], offset, QCOW2) == files[0][offset:]


@pytest.mark.parametrize("seed", range(6))
async def test_a_random_sparse_disk_comes_back(cloud: Cloud, tmp_path: Path, seed: int) -> None:
    await assert_comes_back(cloud, random_sparse(seed), tmp_path)


@pytest.mark.parametrize("kind", ["ext4", "vfat"])
async def test_a_real_file_system_comes_back(cloud: Cloud, tmp_path: Path, kind: str) -> None:
    await assert_comes_back(cloud, file_system(kind, tmp_path), tmp_path)


async def test_an_empty_disk_is_a_file_of_tables(cloud: Cloud, tmp_path: Path) -> None:
    images = await cloud.images(await cloud.serve())
    sample = await cloud.create(bytes((1 << 20) + 512), RAW)
    await images.upload(sample)
    file = await images.download(sample, 0, QCOW2)
    assert len(file) == 4 * 65536
    assert checked(file, tmp_path) == sample.data


async def test_a_large_disk_with_little_on_it_comes_back_by_several_tables(
    cloud: Cloud, tmp_path: Path
) -> None:
    images = await cloud.images(await cloud.serve())
    given, got = tmp_path / "given", tmp_path / "got"
    qemu_img("create", "-f", "qcow2", given, 40 << 30)
    writes = ("write -P 1 0 64k", "write -P 2 600M 5M", f"write -P 3 {(40 << 30) - 512} 512")
    qemu_io(given, *writes)
    sample = await cloud.create(given.read_bytes(), QCOW2)
    await images.upload(sample)
    got.write_bytes(await images.download(sample, 0, QCOW2))
    qemu_img("check", "-f", "qcow2", got)
    qemu_img("compare", "-f", "qcow2", "-F", "qcow2", given, got)

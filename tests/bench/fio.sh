#!/usr/bin/env bash
# fio.sh OUT - builds OUT/fio: Debian's fio with its engine for iSCSI, which Debian's package lacks.
#
# The source is Debian's own, from where apt has its packages and checked by apt's keys. apt's lists of sources are kept apart, so
# that nothing of the system changes. What was built stays until this script changes: the mark is a copy of it.
# Needs: build-essential pkg-config libiscsi-dev
set -euo pipefail

script=$(realpath "$0")
out=$(realpath -m "$1")
! cmp -s "$script" "$out/made-by.sh" || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# apt fetches as a user of its own where it may.
chmod 755 "$work"
# shellcheck source=/dev/null
. /etc/os-release
# shellcheck disable=SC2016 # apt fills the names in
mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' |
    awk -v release="$VERSION_CODENAME" '$2 == release { print $1; exit }')
[ -n "$mirror" ] || { echo "apt knows no source for Debian $VERSION_CODENAME" >&2; exit 1; }
mkdir -p "$work"/{parts,lists/partial,cache/archives/partial}
cat >"$work/parts/source.sources" <<SOURCE
Types: deb-src
URIs: $mirror
Suites: $VERSION_CODENAME
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
apart=(-qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/parts"
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache")

cd "$work"
apt-get "${apart[@]}" update >&2
apt-get "${apart[@]}" source fio >said 2>&1 || { cat said >&2; exit 1; }
cd fio-*/
{ ./configure --enable-libiscsi --disable-native && make -j"$(nproc)" fio; } >../said 2>&1 ||
    { tail -n 30 ../said >&2; exit 1; }
./fio --enghelp 2>/dev/null | grep -q libiscsi || { echo "this fio has no engine for iSCSI" >&2; exit 1; }

rm -rf "$out"
mkdir -p "$out"
mv fio "$out/fio"
# Last: whoever sees it finds the program too.
cp "$script" "$out/made-by.sh"

#!/usr/bin/env bash
# Makes the Debian package of the agent in guests, for one architecture:
#
#	cmd/replug-guest/deb/make.sh amd64|arm64 DIRECTORY
#
# It writes DIRECTORY/replug-guest_VERSION_ARCH.deb, the same bytes for the same
# commit, and prints the path. Called by `make package`. It needs Go and dpkg-deb.
set -euo pipefail
arch=${1:?usage: make.sh amd64|arm64 DIRECTORY}
out=${2:?usage: make.sh amd64|arm64 DIRECTORY}
case $arch in amd64 | arm64) ;; *) echo "make.sh: architecture $arch: want amd64 or arm64" >&2; exit 2 ;; esac
mkdir -p "$out"
out=$(cd "$out" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../../.."
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 1735689600)
export SOURCE_DATE_EPOCH
version=${VERSION:-0.1+$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M)}

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
mkdir -p "$root/DEBIAN" "$root/usr/sbin" "$root/lib/systemd/system" "$root/usr/share/doc/replug-guest"
CGO_ENABLED=0 GOOS=linux GOARCH=$arch ${GO:-go} build -trimpath -buildvcs=false -ldflags '-s -w' -o "$root/usr/sbin/replug-guest" ./cmd/replug-guest
install -m 644 cmd/replug-guest/deb/replug-guest.service "$root/lib/systemd/system/"
install -m 644 LICENSE "$root/usr/share/doc/replug-guest/copyright"
install -m 755 cmd/replug-guest/deb/{postinst,prerm,postrm} "$root/DEBIAN/"
# In KiB by what the files say of their sizes, as dpkg-gencontrol(1) counts: blocks
# depend on the file system, and on when it is asked.
size=$(find "$root" -path "$root/DEBIAN" -prune -o -type f -printf '%s\n' -o -printf '1\n' | awk '{ n += int(($1 + 1023) / 1024) } END { print n }')
cat >"$root/DEBIAN/control" <<CONTROL
Package: replug-guest
Version: $version
Architecture: $arch
Maintainer: Replug maintainers <maintainers@replug.example>
Section: admin
Priority: optional
Installed-Size: $size
Suggests: e2fsprogs
Description: agent of Replug in a virtual machine
 Keeps the NIC in step with the network behind it when that is replaced while the
 machine runs, and applies the settings that its host publishes. A DHCP client
 that is there is told to renew; without one it is the client.
CONTROL
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
deb=$out/replug-guest_${version}_$arch.deb
dpkg-deb --root-owner-group -Zxz --build "$root" "$deb" >/dev/null
echo "$deb"

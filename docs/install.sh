#!/usr/bin/env bash
# Installs Replug on real machines: Debian 12 or 13. Build it first (`make build`), and have this directory's repository,
# with its bin/, on each machine. In this order, as root:
#
#   docs/install.sh pki DIR SERVER_IP HOST...     once: certificates of a server "s1",
#                                                 an operator and each host, in DIR
#   docs/install.sh server DIR                    on the server
#   docs/install.sh host DIR SERVER_IP [PREFIX]   on each host; PREFIX: the provider
#                                                 addresses that your fabric routes to
#                                                 it, left out: the host's own address
#
# Then, on the server: replug host list
#
# A host needs its own files of DIR only (ca.crt, NAME.crt, NAME.key); ca.key stays
# where it was made. UDP 4789 must pass between the hosts, TCP 7443 from the hosts
# to the server. Networks end up 50 bytes below the underlay's MTU, 70 over IPv6.
#
# It is safe to run again: programs, configuration and units are replaced, state is
# kept. The programs are systemd units, which come again after a reboot.
#
#   NAME=h7     the host's name in the cluster (default: the machine's)
#   ROOT=/mnt   install below this directory (default: /)
#   START=no    install only
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
ROOT=${ROOT:-}
START=${START:-yes}
NAME=${NAME:-$(uname -n)}

die() {
	echo "install.sh: $*" >&2
	exit 1
}

usage() {
	sed -n '2,/^set -e/{/^#/s/^# \{0,1\}//p}' "$0"
	exit 2
}

# packages NAME...: what isn't there yet.
packages() {
	local missing=()
	for p in "$@"; do
		[ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing+=("$p")
	done
	[ ${#missing[@]} = 0 ] && return
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# programs NAME...: from bin/, whole or not at all, so that one that runs goes on.
programs() {
	for p in "$@"; do
		[ -x "$repository/bin/$p" ] || die "$repository/bin/$p is missing: run 'make build' there first"
		install -D -m 755 "$repository/bin/$p" "$ROOT/usr/local/bin/$p"
	done
}

# certificates DIR NAME: the authority's certificate, NAME's own, and NAME's key.
certificates() {
	for file in ca.crt "$2.crt" "$2.key"; do
		[ -r "$1/$file" ] || die "$1/$file is missing: '$0 pki' makes it"
	done
	install -D -m 644 -t "$ROOT/etc/replug/pki" "$1/ca.crt" "$1/$2.crt"
	install -D -m 600 -t "$ROOT/etc/replug/pki" "$1/$2.key"
}

# unit NAME DESCRIPTION: the service that runs the program, with more lines for it
# from standard input; then begins it.
unit() {
	cat >"$ROOT/etc/systemd/system/$1.service" <<-UNIT
		[Unit]
		Description=$2
		After=network-online.target
		Wants=network-online.target

		[Service]
		ExecStart=/usr/local/bin/$1 --config /etc/replug/${1#replug-}.yaml
		Restart=always
		RestartSec=1
		$(cat)

		[Install]
		WantedBy=multi-user.target
	UNIT
	systemctl --root="$ROOT/" --quiet enable "$1"
	if [ "$START" != yes ]; then
		echo "installed; start it with: systemctl start $1"
		return
	fi
	systemctl daemon-reload
	systemctl restart "$1"
	echo "started; its log: journalctl -u $1"
}

make_pki() {
	[ $# -ge 2 ] || usage
	local dir=$1 ip=$2 replug=$repository/bin/replug
	shift 2
	[ -x "$replug" ] || die "$replug is missing: run 'make build' first"
	[ -e "$dir/ca.crt" ] || "$replug" pki init --dir "$dir"
	"$replug" pki issue server s1 --ip "$ip" --dir "$dir"
	"$replug" pki issue operator operator --dir "$dir"
	for host in "$@"; do "$replug" pki issue host "$host" --dir "$dir"; done
}

install_server() {
	[ $# = 1 ] || usage
	packages ca-certificates
	programs replug replug-server
	certificates "$1" s1
	certificates "$1" operator
	install -d -m 700 "$ROOT/var/lib/replug"
	install -d "$ROOT/etc/systemd/system"
	cat >"$ROOT/etc/replug/server.yaml" <<-YAML
		name: s1
		data-dir: /var/lib/replug
		listen: ":7443"
		ca: /etc/replug/pki/ca.crt
		cert: /etc/replug/pki/s1.crt
		key: /etc/replug/pki/s1.key
	YAML
	# It needs its files and its port: no privilege of root's, and nothing else to write.
	unit replug-server "Replug's directory and control plane" <<-'LINES'
		CapabilityBoundingSet=
		NoNewPrivileges=yes
		ProtectSystem=strict
		ReadWritePaths=/var/lib/replug
		ProtectHome=yes
		PrivateTmp=yes
		PrivateDevices=yes
		ProtectKernelTunables=yes
		ProtectControlGroups=yes
		RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
	LINES
}

install_host() {
	[ $# = 2 ] || [ $# = 3 ] || usage
	local uplink server=$2
	packages ca-certificates iproute2 qemu-system-x86 qemu-utils
	programs replug-host
	certificates "$1" "$NAME"
	# The way to the server is the way to the other hosts.
	uplink=$(ip -o route get "$2" | sed -n 's/.* dev \([^ ]*\).*/\1/p')
	[ -n "$uplink" ] || die "no route to the server $2"
	case $server in *:*) server="[$server]" ;; esac # IPv6
	install -d -m 700 "$ROOT/var/lib/replug-host" "$ROOT/var/lib/replug-host/images"
	install -d "$ROOT/etc/systemd/system"
	cat >"$ROOT/etc/replug/host.yaml" <<-YAML
		name: "$NAME"
		server: ["$server:7443"]
		uplink: $uplink
		${3:+pa-prefix: $3}
		memory: $(awk '/MemTotal/ { print int($2 / 1024 / 2) }' /proc/meminfo)
		ca: /etc/replug/pki/ca.crt
		cert: /etc/replug/pki/$NAME.crt
		key: /etc/replug/pki/$NAME.key
	YAML
	# VMs are its children: they outlive it, and one that the kernel ends for want of
	# memory is not its end.
	unit replug-host "Replug's host agent" <<-'LINES'
		KillMode=process
		OOMPolicy=continue
		TasksMax=infinity
		LimitNOFILE=1048576
	LINES
}

[ $# -ge 1 ] || usage
role=$1
shift
case $role in
pki) make_pki "$@" ;;
server | host)
	[ "$(id -u)" = 0 ] || die "run this as root"
	"install_$role" "$@"
	;;
*) usage ;;
esac

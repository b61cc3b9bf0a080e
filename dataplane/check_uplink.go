package dataplane

import (
	"errors"
	"fmt"
	"net/netip"

	"replug/dataplane/netdev"
	"replug/directory/vnet"
)

// uplinkProbes ask what the device to the underlay can do and what is in its way.
func uplinkProbes(name string, pas netip.Prefix) []probe {
	up, err := findUplink(name, pas)
	if err != nil {
		return []probe{{"an uplink", true, "no frame leaves this host", "give --uplink DEVICE, with an address on it",
			func() (State, string) { return Lack, err.Error() }}}
	}
	probes := append(mtuProbes(up), xdpProbes(up)...)
	return append(append(probes, offloadProbes(up.Name)...), pathProbes(up)...)
}

func mtuProbes(up netdev.Uplink) []probe {
	left := up.MTU - overhead(up.Addr)
	p := probe{what: "MTU of " + up.Name, do: fmt.Sprintf("ip link set %s mtu %d or more, on the fabric too", up.Name, 1500+overhead(up.Addr)),
		cost: fmt.Sprintf("guests have an MTU of %d: their peers outside send packets that are too big, and learn it late", left),
		ask: func() (State, string) {
			return is(left >= 1500), fmt.Sprintf("%d, which leaves guests %d", up.MTU, left)
		}}
	switch {
	case left < leastMTU:
		p.needed, p.cost = true, fmt.Sprintf("guests need %d bytes (RFC 791): the agent doesn't start", leastMTU)
	case left < leastMTU6:
		p.cost = fmt.Sprintf("guests have an MTU of %d: no network of this host can have IPv6, which needs %d", left, leastMTU6)
	}
	return []probe{p}
}

// xdpProbes ask for what PERFORMANCE of the receive path depends on.
func xdpProbes(up netdev.Uplink) []probe {
	const cost = "small packets take the way by tcx: 2,003 ns of CPU each into a tap instead of 1,451, measured"
	xdp, err := netdev.DriverXDP(up.Ifindex)
	state := func(has bool) (State, string) {
		switch {
		case errors.Is(err, netdev.ErrUnknown):
			return Unknown, "Linux 6.3 tells; the agent finds out when it attaches"
		case err != nil:
			return Unknown, err.Error()
		}
		return is(has), ""
	}
	return []probe{
		{"native XDP of " + up.Name, false, cost, "a NIC whose driver has it, such as ice, i40e, mlx5, ena, gve or virtio_net with enough queues",
			func() (State, string) { return state(xdp.Native && xdp.Redirect) }},
		{"native XDP of several buffers", false, "with an MTU above some 3,500 bytes native XDP can't be used", "a newer driver, or a smaller MTU",
			func() (State, string) { return state(xdp.Frags) }},
		{"VLAN tags before XDP", false, "where native XDP is used, a frame of another VLAN that the switch's port carries counts as the underlay's", "ethtool -K " + up.Name + " rx-vlan-offload off, or the agent's --xdp off",
			func() (State, string) { return tagsSeen(up.Name) }},
	}
}

// tagsSeen asks whether the NIC leaves tags in the frame (net/ethtool/common.c has the name).
func tagsSeen(device string) (State, string) {
	const feature = "rx-vlan-hw-parse"
	have, err := netdev.Offloads(device)
	if err != nil {
		return Unknown, err.Error()
	}
	return is(!have[feature]), feature
}

// An offload of the uplink, and what is lost without.
var offloads = []struct{ feature, what, cost string }{
	{"rx-gro", "merging of received frames (GRO)", "TCP into a VM falls to 0.4 of plain routing, measured"},
	{"tx-udp_tnl-segmentation", "segmentation behind VXLAN", "the CPU cuts a VM's TCP superpackets: 0.84 to 0.95 of plain routing instead of 1.0, measured"},
	{"tx-udp-segmentation", "UDP segmentation", "the CPU cuts a VM's UDP superpackets"},
	{"tx-checksum-ip-generic", "checksums of any protocol", "the CPU sums each packet that a VM left unfinished, if the NIC can't do it for IPv4 and IPv6 either"},
}

func offloadProbes(device string) []probe {
	have, err := netdev.Offloads(device)
	var probes []probe
	for _, o := range offloads {
		probes = append(probes, probe{o.what, false, o.cost, fmt.Sprintf("ethtool -K %s %s on, if the NIC has it", device, o.feature),
			func() (State, string) {
				if err != nil {
					return Unknown, err.Error()
				}
				return is(have[o.feature]), o.feature
			}})
	}
	return probes
}

// pathProbes look at what handles a frame before the datapath, and above it.
func pathProbes(up netdev.Uplink) []probe {
	device, of := up.Name, familyOf(vnet.CA{Addr: up.Addr})
	probes := []probe{
		{"threaded NAPI of " + device, false, "frames are received in softirqs, which come before a VM's CPUs on the same core: a busy sender slows the VMs there", "echo 1 > /sys/class/net/" + device + "/threaded",
			func() (State, string) {
				on, err := netdev.Threaded(device)
				if err != nil {
					return Unknown, err.Error()
				}
				return is(on), ""
			}},
		{"no firewall rule against UDP 4789 over " + of.String(), false, "merged frames, which is most of TCP, are dropped on their way to the VXLAN device", "let UDP port 4789 pass in the " + of.String() + " input chain, from the underlay",
			func() (State, string) { return judgeRules(rulesOfHost(of)) }},
		{"no connection tracking of UDP 4789 over " + of.String(), false, "each merged frame costs a look-up, and each flow a row, in the host's table", "a notrack rule for UDP port 4789 in a raw prerouting chain of " + of.String(),
			func() (State, string) { return judgeTracking(rulesOfHost(of)) }},
	}
	if up.Addr.Is4() { // the kernel has no such filter for IPv6
		probes = append(probes, reverseProbe(device))
	}
	return probes
}

func reverseProbe(device string) probe {
	return probe{"no strict reverse path filter on " + device, false, "merged frames from a PA whose way back is another device are dropped by the kernel", "sysctl net.ipv4.conf." + device + ".rp_filter=2",
		func() (State, string) {
			n, err := netdev.ReversePath(device)
			if err != nil {
				return Unknown, err.Error()
			}
			return is(n != 1), fmt.Sprintf("rp_filter %d", n)
		}}
}

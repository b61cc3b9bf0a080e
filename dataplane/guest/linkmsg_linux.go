package guest

import (
	"encoding/binary"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// parseLink reads an RTM_NEWLINK or RTM_DELLINK of an Ethernet NIC (linux/rtnetlink.h,
// linux/if_link.h); false for any other message.
func parseLink(m *syscall.NetlinkMessage) (linkState, bool) {
	var st linkState
	if m.Header.Type != unix.RTM_NEWLINK && m.Header.Type != unix.RTM_DELLINK || len(m.Data) < unix.SizeofIfInfomsg {
		return st, false
	}
	family, kind := m.Data[0], binary.NativeEndian.Uint16(m.Data[2:])
	flags := binary.NativeEndian.Uint32(m.Data[8:])
	if family != unix.AF_UNSPEC || kind != unix.ARPHRD_ETHER || flags&unix.IFF_LOOPBACK != 0 {
		return st, false
	}
	attrs, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return st, false
	}
	st.index = int(binary.NativeEndian.Uint32(m.Data[4:]))
	st.admin = flags&unix.IFF_UP != 0
	for _, a := range attrs {
		switch {
		case a.Attr.Type == unix.IFLA_IFNAME:
			st.name = strings.TrimRight(string(a.Value), "\x00")
		case a.Attr.Type == unix.IFLA_ADDRESS && len(a.Value) == len(st.mac):
			copy(st.mac[:], a.Value)
		case a.Attr.Type == unix.IFLA_CARRIER && len(a.Value) >= 1:
			st.carrier = a.Value[0] != 0
		case a.Attr.Type == unix.IFLA_CARRIER_CHANGES && len(a.Value) >= 4:
			st.changes = binary.NativeEndian.Uint32(a.Value)
		}
	}
	return st, true
}

// tellsAll reports whether a link message tells all who listen that the link is up.
// The answers to the agent's own questions carry its port, and run ahead: the state
// that the kernel tells of (IFF_RUNNING) is as late as its messages.
func tellsAll(m *syscall.NetlinkMessage) bool {
	return m.Header.Pid == 0 && m.Header.Type == unix.RTM_NEWLINK && binary.NativeEndian.Uint32(m.Data[8:])&unix.IFF_RUNNING != 0
}

// refusal is why the kernel refused what it was asked. It is busy (EBUSY) while it
// still lists the links for an earlier question.
func refusal(m *syscall.NetlinkMessage) unix.Errno {
	if len(m.Data) < 4 {
		return 0
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(m.Data)))
}

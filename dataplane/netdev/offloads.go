package netdev

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrUnknown says that this kernel can't tell.
var ErrUnknown = errors.New("this kernel doesn't tell")

// Commands of linux/ethtool.h.
const (
	ethtoolGSTRINGS  = 0x1b
	ethtoolGSSETINFO = 0x37
	ethtoolGFEATURES = 0x3a
	featureNames     = 4 // ETH_SS_FEATURES
	nameLen          = 32
)

// Offloads returns a device's features by the names that `ethtool -k` has for
// them in the kernel ("rx-gro"), and whether each is on.
func Offloads(device string) (map[string]bool, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	ask := func(request []byte) error { return ethtool(fd, device, request) }

	count := words(ethtoolGSSETINFO, 0, 1<<featureNames, 0, 0)
	if err := ask(count); err != nil {
		return nil, fmt.Errorf("count features of %s: %w", device, err)
	}
	n := binary.NativeEndian.Uint32(count[16:])
	names := append(words(ethtoolGSTRINGS, featureNames, n), make([]byte, n*nameLen)...)
	if err := ask(names); err != nil {
		return nil, fmt.Errorf("name features of %s: %w", device, err)
	}
	blocks := (n + 31) / 32
	state := append(words(ethtoolGFEATURES, blocks), make([]byte, blocks*16)...)
	if err := ask(state); err != nil {
		return nil, fmt.Errorf("read features of %s: %w", device, err)
	}
	all := map[string]bool{}
	for i := range n {
		name := names[12+i*nameLen : 12+(i+1)*nameLen]
		active := binary.NativeEndian.Uint32(state[8+i/32*16+8:]) // available, requested, active, never changed
		all[string(bytes.TrimRight(name, "\x00"))] = active&(1<<(i%32)) != 0
	}
	return all, nil
}

// ethtool hands a request to the kernel, which answers in its place.
func ethtool(fd int, device string, request []byte) error {
	var ifr struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}
	copy(ifr.name[:unix.IFNAMSIZ-1], device)
	ifr.data = unsafe.Pointer(&request[0])
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&ifr))); errno != 0 {
		return errno
	}
	return nil
}

func words(w ...uint32) []byte {
	var b []byte
	for _, v := range w {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	return b
}

// XDP is what a driver can do with XDP by itself.
type XDP struct {
	Native   bool // programs run in the driver
	Redirect bool // and may send a frame to another device
	Frags    bool // frames of several buffers: needed for a large MTU
}

// Of linux/netdev.h.
const (
	netdevDevGet      = 1
	netdevIfindex     = 1
	netdevXDPFeatures = 3
	xdpBasic          = 1
	xdpRedirect       = 2
	xdpRxSG           = 32
)

// DriverXDP asks what a device's driver can do, without touching it. It returns
// [ErrUnknown] before Linux 6.3.
func DriverXDP(ifindex int) (XDP, error) {
	family, err := netlink.GenlFamilyGet("netdev")
	if errors.Is(err, unix.ENOENT) {
		return XDP{}, fmt.Errorf("XDP of a driver (Linux 6.3 does): %w", ErrUnknown)
	}
	if err != nil {
		return XDP{}, fmt.Errorf("find the netdev family: %w", err)
	}
	req := nl.NewNetlinkRequest(int(family.ID), unix.NLM_F_ACK)
	req.AddData(genlHeader{netdevDevGet, 1})
	req.AddData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex))))
	messages, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return XDP{}, fmt.Errorf("ask for the XDP of device %d: %w", ifindex, err)
	}
	for _, m := range messages {
		attrs, err := nl.ParseRouteAttr(m[nl.SizeofGenlmsg:])
		if err != nil {
			return XDP{}, fmt.Errorf("read the XDP of device %d: %w", ifindex, err)
		}
		for _, a := range attrs {
			if a.Attr.Type == netdevXDPFeatures && len(a.Value) >= 8 {
				f := binary.NativeEndian.Uint64(a.Value)
				return XDP{Native: f&xdpBasic != 0, Redirect: f&xdpRedirect != 0, Frags: f&xdpRxSG != 0}, nil
			}
		}
	}
	return XDP{}, fmt.Errorf("XDP of device %d: %w", ifindex, ErrUnknown)
}

// A genlHeader is struct genlmsghdr; that of nl has garbage in its reserved
// bytes, which strict families refuse.
type genlHeader [nl.SizeofGenlmsg]byte

func (h genlHeader) Len() int          { return len(h) }
func (h genlHeader) Serialize() []byte { return h[:] }

// Threaded reports whether a device's frames are received by threads of their
// own, which the scheduler places (NAPI threads).
func Threaded(device string) (bool, error) {
	b, err := os.ReadFile(filepath.Join("/sys/class/net", device, "threaded"))
	if err != nil {
		return false, fmt.Errorf("threaded NAPI of %s: %w", device, err)
	}
	return strings.TrimSpace(string(b)) == "1", nil
}

// ReversePath returns how strictly the kernel checks where frames of a device
// come from: 0 not, 1 by the route back, 2 by any route.
func ReversePath(device string) (int, error) {
	strictest := 0
	for _, which := range []string{"all", device} {
		b, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv4/conf", which, "rp_filter"))
		if err != nil {
			return 0, fmt.Errorf("reverse path filter: %w", err)
		}
		// The kernel takes the higher number, of which 2 is the milder.
		if n := int(b[0] - '0'); n > strictest {
			strictest = n
		}
	}
	return strictest, nil
}

// TapTakesUSO reports whether a tap takes UDP superpackets (Linux 6.2): they are
// segmented where they leave, not by the guest.
func TapTakesUSO() (bool, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("rp-try%d")
	if err != nil {
		return false, err
	}
	req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		return false, fmt.Errorf("make a tap to try: %w", err)
	}
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, unix.TUN_F_CSUM|unix.TUN_F_USO4|unix.TUN_F_USO6)
	return err == nil, nil
}

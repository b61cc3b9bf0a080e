package bpf

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/cilium/ebpf/link"
)

// Invariant 7: an agent that starts again finds everything in force and replaces
// the programs under the links, which stay what they were.
func TestLoadAgainTakesOver(t *testing.T) {
	a := newA(t)
	tap := a.taps[redA.id]
	a.must(errors.Join(a.dp.AttachUplink(a.options.Uplink), a.dp.AttachTap(tap)))
	rows, err := a.dp.Ports()
	a.must(err)
	mappings, err := a.dp.Mappings()
	a.must(err)
	oldLink, oldProg := attached(t, a, tapPin+fmt.Sprint(tap))
	a.must(a.dp.Close())

	a.dp, err = Load(a.options)
	a.must(err)
	t.Cleanup(func() { a.must(a.dp.Close()) })
	a.must(errors.Join(a.dp.AttachUplink(a.options.Uplink), a.dp.AttachTap(tap)))
	newLink, newProg := attached(t, a, tapPin+fmt.Sprint(tap))
	if newLink != oldLink || newProg == oldProg {
		t.Errorf("%s with program %d became %s with program %d, want the same one and a new program", oldLink, oldProg, newLink, newProg)
	}
	if got, err := a.dp.Ports(); err != nil || !reflect.DeepEqual(got, rows) {
		t.Errorf("rows: got %v, %v, want %v", got, err, rows)
	}
	if got, err := a.dp.Mappings(); err != nil || len(got) != len(mappings) {
		t.Errorf("mappings: got %d, %v, want %d", len(got), err, len(mappings))
	}
	before := a.drops()
	a.send(redA, eth(gatewayMAC, redA.mac, etherIPv4, udp4(caA, caB, 5353, 7946, text(37))))
	a.counted("a frame after it", before, "none")

	a.must(a.dp.DetachTap(tap))
	a.must(a.dp.DetachTap(tap))
	if taps, err := a.dp.AttachedTaps(); err != nil || len(taps) != 0 {
		t.Errorf("taps %v, %v, want none", taps, err)
	}
}

// attached returns what holds a program on a device, a link or a filter, and
// the program.
func attached(t *testing.T, h *host, pin string) (string, uint32) {
	t.Helper()
	if h.dp.noTCX {
		all, err := filters(h.options.PinDir)
		h.must(err)
		have, err := all[pin].find()
		h.must(err)
		return fmt.Sprintf("filter %s", have), uint32(have.Id)
	}
	l, err := link.LoadPinnedLink(filepath.Join(linkDir(h.options.PinDir), pin), nil)
	h.must(err)
	defer l.Close()
	info, err := l.Info()
	h.must(err)
	return fmt.Sprintf("link %d", info.ID), uint32(info.Program)
}

func TestLoadRefusesOptions(t *testing.T) {
	isolate(t)
	dir := filepath.Join(bpffs(t), "replug")
	good := Options{PinDir: dir, Uplink: 3, GatewayMAC: gatewayMAC, HostAddress: hostA, PAPrefix: prefixA, UnderlayMTU: 1550}
	for name, change := range map[string]func(*Options){
		"no uplink":               func(o *Options) { o.Uplink = 0 },
		"IPv6 host with IPv4 PAs": func(o *Options) { o.HostAddress = addr("2001:db8::7") },
		"no PA prefix":            func(o *Options) { o.PAPrefix = netip.Prefix{} },
		"too many PAs":            func(o *Options) { o.PAPrefix = netip.MustParsePrefix("100.64.0.0/15") },
		"tiny MTU":                func(o *Options) { o.UnderlayMTU = 600 },
		"no gateway":              func(o *Options) { o.GatewayMAC = [6]byte{} },
		"not on a bpffs":          func(o *Options) { o.PinDir = t.TempDir() },
	} {
		o := good
		change(&o)
		if _, err := Load(o); !errors.Is(err, ErrOptions) {
			t.Errorf("%s: got %v, want ErrOptions", name, err)
		}
	}
	d, err := Load(good)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(d.Close(), Remove(dir), Remove(dir)); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}

// What is written is what is read back, and bad rows are refused.
func TestRows(t *testing.T) {
	a := newA(t)
	want := Port{
		Ifindex: 17, VNI: red, Epoch: 0x0002_0000_0000_9d07, MAC: [6]byte{2, 0x52, 0x31, 0x42, 0x53, 0x64},
		PA: addr("100.64.18.219"), CAs: []netip.Prefix{subnet("10.17.34.91/23"), subnet("fd17:2a::91/67"), subnet("10.17.34.93/31"), subnet("10.17.34.94/23")},
		Gateway: gateway, MTU: 1437, Flags: Open | Timed,
	}
	a.must(a.dp.SetPort(53, want))
	if got, err := a.dp.Port(53); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for name, change := range map[string]func(*Port){
		"no tap":      func(p *Port) { p.Ifindex = 0 },
		"VNI 0":       func(p *Port) { p.VNI = 0 },
		"25-bit VNI":  func(p *Port) { p.VNI = 1 << 24 },
		"group MAC":   func(p *Port) { p.MAC[0] |= 1 },
		"no PA":       func(p *Port) { p.PA = netip.Addr{} },
		"five CAs":    func(p *Port) { p.CAs = append(p.CAs, subnet("10.17.34.95/23")) },
		"MTU too big": func(p *Port) { p.MTU = 65536 },
	} {
		bad := want
		change(&bad)
		if err := a.dp.SetPort(53, bad); !errors.Is(err, ErrPort) {
			t.Errorf("%s: got %v, want ErrPort", name, err)
		}
	}
	for _, id := range []uint16{0, 16383, 65535} {
		if err := a.dp.SetPort(id, want); !errors.Is(err, ErrPort) {
			t.Errorf("port id %d: got %v, want ErrPort", id, err)
		}
	}
}

func TestMappingsAndRoutes(t *testing.T) {
	isolate(t)
	h := newHost(t, "a", hostA, prefixA, func(o *Options) { o.Mappings = 3 })
	h.must(h.dp.PutMappings(redA.mapping(7), redB.mapping(5), blueB.mapping(6)))
	if got, ok, err := h.dp.Mapping(MappingKey{red, caB}); err != nil || !ok || got != redB.mapping(5) {
		t.Errorf("got %+v, %v, %v, want %+v", got, ok, err, redB.mapping(5))
	}
	if err := h.dp.PutMappings(blueA.mapping(7)); !errors.Is(err, ErrFull) {
		t.Errorf("a fourth: got %v, want ErrFull", err)
	}
	oneThatDoesNotFit(t, h)
	if err := h.dp.PutMappings(Mapping{MappingKey: MappingKey{red, caB}}); !errors.Is(err, ErrAddress) {
		t.Errorf("no PA: got %v, want ErrAddress", err)
	}
	h.must(h.dp.DeleteMappings(MappingKey{red, caB}, MappingKey{red, caNobody}))
	if _, ok, err := h.dp.Mapping(MappingKey{red, caB}); err != nil || ok {
		t.Errorf("deleted, but there: %v, %v", ok, err)
	}
	routes := []Route{{VNI: red, Prefix: pfx("203.0.113.0/26"), NextHop: caB}}
	h.must(h.dp.PutRoute(routes[0]))
	if got, err := h.dp.Routes(); err != nil || !reflect.DeepEqual(got, routes) {
		t.Errorf("routes %v, %v, want %v", got, err, routes)
	}
	h.must(h.dp.PutHost(prefixB))
	if got, err := h.dp.Hosts(); err != nil || len(got) != 1 || got[0] != prefixB {
		t.Errorf("hosts %v, %v, want %v", got, err, prefixB)
	}
	h.must(errors.Join(h.dp.DeleteHost(prefixB), h.dp.DeleteHost(prefixB), h.dp.DeleteRoute(red, routes[0].Prefix), h.dp.DeleteRoute(red, routes[0].Prefix)))
}

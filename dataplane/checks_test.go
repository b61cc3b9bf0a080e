package dataplane

import (
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"replug/directory/frame"
	"replug/directory/vnet"
)

// A backendWorld is one service with two backends here, and what their guests do.
type backendWorld struct {
	*checks
	t        *testing.T
	services []vnet.Service
	ports    map[string]target
	does     map[string]string // member -> answers, refuses, silent, lies
	sent     []frame.Spec
	reports  []string
}

func newBackendWorld(t *testing.T) *backendWorld {
	w := &backendWorld{t: t, checks: newChecks(slog.New(slog.NewTextHandler(io.Discard, nil))), ports: map[string]target{}, does: map[string]string{}}
	s := service(red, "www", "10.17.34.90", 443)
	s.Check = &vnet.Check{Interval: 5 * time.Second, Timeout: 2 * time.Second, Rise: 2, Fall: 3}
	s.Backends = []vnet.Backend{
		{Member: "p-17", CA: vnet.CA{Addr: netip.MustParseAddr("10.17.34.51")}, Port: 8443, Weight: 1},
		{Member: "p-18", CA: vnet.CA{Addr: netip.MustParseAddr("fd17:34::62")}, Port: 8443, Weight: 1},
		{Member: "p-99", CA: vnet.CA{Addr: netip.MustParseAddr("10.17.34.77")}, Port: 8443, Weight: 1}, // elsewhere
	}
	w.services = []vnet.Service{s}
	w.checks.services = func() []vnet.Service { return w.services }
	w.checks.find = func(member string) (target, bool) { t, ok := w.ports[member]; return t, ok }
	w.checks.report = func(h vnet.Health) {
		w.reports = append(w.reports, fmt.Sprintf("%s dead %t %s", h.Member, h.Dead, h.Error))
	}
	w.checks.forget = func(h vnet.Health) { w.reports = append(w.reports, h.Member+" forgotten") }
	w.checks.send = w.guest
	p := place("red", red, "10.17.34.51", 7)
	w.ports["p-17"] = target{23, &p, 723, vnet.PortMAC(0x1a2b3c4d)}
	q := place("red", red, "fd17:34::62", 8)
	w.ports["p-18"] = target{24, &q, 724, vnet.PortMAC(0x1a2b3c4e)}
	return w
}

// guest takes a probe's segment and does what its guest does.
func (w *backendWorld) guest(to target, s frame.Spec) error {
	w.sent = append(w.sent, s)
	does := w.does["p-17"]
	if to.id == 24 {
		does = w.does["p-18"]
	}
	if s.Flags&frame.SYN == 0 || does == "silent" {
		return nil
	}
	back := frame.Spec{SrcMAC: s.DstMAC, DstMAC: s.SrcMAC, Src: s.Dst, Dst: s.Src, Protocol: vnet.TCP, SrcPort: s.DstPort, DstPort: s.SrcPort,
		Flags: frame.SYN | frame.ACK, Seq: 0x3c4d5e6f, Ack: s.Seq + 1}
	switch does {
	case "refuses":
		back.Flags = frame.RST | frame.ACK
	case "lies":
		back.Ack += 7
	}
	f, err := frame.Compose(back)
	if err != nil {
		w.t.Error(err)
	}
	time.AfterFunc(3*time.Millisecond, func() { w.answer(to.id, f) })
	return nil
}

func (w *backendWorld) run() {
	go w.checks.run(w.t.Context())
	w.changed()
}

// said is what was reported since the last call.
func (w *backendWorld) said() []string {
	out := w.reports
	w.reports = nil
	slices.Sort(out)
	return out
}

func TestChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBackendWorld(t)
		w.does["p-18"] = "silent"
		w.run()
		is := func(when string, want ...string) {
			t.Helper()
			if got := w.said(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		settle(25 * time.Second)
		is("first", "p-17 dead false ", "p-18 dead true no answer from [fd17:34::62]:8443 in 2s")
		settle(time.Minute)
		is("nothing new")
		w.does["p-17"], w.does["p-18"] = "refuses", ""
		settle(25 * time.Second)
		is("both change", "p-17 dead true 10.17.34.51:8443 refuses connections", "p-18 dead false ")
		w.does["p-17"], w.does["p-18"] = "", "lies"
		settle(25 * time.Second)
		is("an answer that is made up is none", "p-17 dead false ", "p-18 dead true no answer from [fd17:34::62]:8443 in 2s")

		delete(w.ports, "p-18") // it is swapped away
		w.changed()
		settle(time.Second)
		is("left", "p-18 forgotten")
		w.services[0].Check = nil
		w.changed()
		settle(time.Second)
		is("no check any more", "p-17 forgotten")
		n := len(w.sent)
		settle(time.Minute)
		if len(w.sent) != n || len(w.all)+len(w.open)+len(w.queue) != 0 {
			t.Errorf("it goes on: %d more, %d, %d, %d", len(w.sent)-n, len(w.all), len(w.open), len(w.queue))
		}
	})
}

// What the directory says otherwise is said again: a backend that was taken out and
// put back, or a service that was edited, is not alive because its row is new. What
// was found out of another address or port counts for nothing.
func TestChecksSayAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBackendWorld(t)
		delete(w.ports, "p-18")
		w.does["p-17"] = "refuses"
		w.run()
		row := &w.services[0].Backends[0]
		edit := func(when string, change func(), want ...string) {
			t.Helper()
			change()
			w.changed()
			settle(25 * time.Second)
			if got := w.said(); !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", when, got, want)
			}
		}
		dead := "p-17 dead true 10.17.34.51:8443 refuses connections"
		edit("first", func() {}, dead)
		edit("its row says so", func() { row.Dead = true })
		edit("another interval", func() {
			w.services[0].Check = &vnet.Check{Interval: 3 * time.Second, Timeout: time.Second, Rise: 2, Fall: 3}
		})
		edit("its row is new", func() { row.Dead = false }, dead)
		edit("another port is as dead", func() { row.Port = 8444 }, "p-17 dead true 10.17.34.51:8444 refuses connections", "p-17 forgotten")
		w.does["p-17"] = ""
		edit("another port to check lives", func() { row.Dead, w.services[0].Check.Port = true, 9090 }, "p-17 dead false ", "p-17 forgotten")
		if len(w.all) != 1 || len(w.queue) != 1 || len(w.open) > 1 {
			t.Errorf("%d checks, %d due, %d probes under way; want one of each at most", len(w.all), len(w.queue), len(w.open))
		}
	})
}

// A flap shorter than rise and fall isn't reported; each connection is broken off;
// probes come from the gateway, one an interval.
func TestChecksAreQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBackendWorld(t)
		delete(w.ports, "p-18")
		w.run()
		settle(20 * time.Second)
		w.said()
		w.sent = nil
		for range 5 {
			w.does["p-17"] = "silent"
			settle(10 * time.Second)
			w.does["p-17"] = ""
			settle(5 * time.Second)
		}
		if got := w.said(); len(got) > 0 {
			t.Errorf("two failures of three: %q", got)
		}
		syn, rst := 0, 0
		ports := map[uint16]bool{}
		var seq uint32
		for _, s := range w.sent {
			switch {
			case s.Flags == frame.SYN:
				syn, seq = syn+1, s.Seq
				ports[s.SrcPort] = true
			case s.Flags == frame.RST && s.Seq == seq+1:
				rst++
			}
			if s.Src.String() != "10.17.34.1" || s.DstPort != 8443 || s.SrcMAC != vnet.GatewayMAC || s.DstMAC != vnet.PortMAC(0x1a2b3c4d) {
				t.Fatalf("sent %+v", s)
			}
		}
		if syn != 15 || rst != 5 || len(ports) != syn {
			t.Errorf("in 75 s: %d probes from %d ports, %d broken off", syn, len(ports), rst)
		}
	})
}

// A probe of IPv6 comes from the network's link-local gateway.
func TestCheckOverIPv6(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBackendWorld(t)
		delete(w.ports, "p-17")
		w.services[0].Check.Port = 8080
		w.run()
		settle(12 * time.Second)
		if len(w.sent) == 0 || !strings.HasPrefix(w.sent[0].Src.String(), "fe80::") || w.sent[0].Src != red.Gateway6() || w.sent[0].DstPort != 8080 {
			t.Errorf("sent %+v", w.sent)
		}
	})
}

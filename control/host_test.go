package control

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"replug/directory/client"
	"replug/directory/vnet"
)

// A fakeHost speaks the directory's stream and says of its ports what a host with
// well-behaved guests would say, as far as its manners go.
type fakeHost struct {
	t      testing.TB
	client *client.Client
	halt   func()

	mu      sync.Mutex
	manners manners
	ports   map[string]*fakePort
	seen    []vnet.Intent // every one that came
}

// manners are how a host behaves; zero: well.
type manners struct {
	refuse string                                    // answers each Next with a refusal
	deaf   bool                                      // says nothing at all
	resets bool                                      // its guests are reset as soon as they have flipped
	upTo   func(vnet.Place) vnet.StatusPhase         // how far it gets in a place; nil: all the way
	guest  func(vnet.Place, *vnet.GuestReport)       // changes what the guest says
	hook   func(phase vnet.StatusPhase, port string) // called before a status is reported
	answer client.Asked                              // answers questions; nil: it refuses
}

type fakePort struct {
	prepared, inForce vnet.Epoch
	power             vnet.Power
	said              vnet.Status
}

func hostInfo(name string, n byte) vnet.HostInfo {
	return vnet.HostInfo{
		Name: name, Address: netip.AddrFrom4([4]byte{172, 31, n, 2}), PAPrefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{100, 64, n, 0}), 24),
		MTU: 1500, Ports: 97, Memory: 4096, Images: []string{"small"}, Version: "test",
	}
}

// host attaches a host to the world's server.
func (w *world) host(name string, n byte) *fakeHost {
	w.t.Helper()
	return w.hostOf(hostInfo(name, n), 3)
}

func (w *world) hostOf(info vnet.HostInfo, session uint64) *fakeHost {
	w.t.Helper()
	tls, err := files(w.t, info.Name).ClientTLS(quiet())
	if err != nil {
		w.t.Fatal(err)
	}
	h := &fakeHost{t: w.t, ports: make(map[string]*fakePort)}
	h.client, err = client.New(client.Config{Endpoints: []string{w.addr}, TLS: tls, Host: info, Session: session, Log: quiet(), MaxWait: 50 * time.Millisecond, OnAsk: h.asked}, h)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = h.client.Run(ctx) })
	h.halt = sync.OnceFunc(func() {
		stop()
		running.Wait()
	})
	w.t.Cleanup(h.halt)
	w.wait("host "+info.Name, func() error {
		if _, _, ok := h.client.Connected(); !ok {
			return fmt.Errorf("not connected: %w", h.client.Err())
		}
		return nil
	})
	return h
}

// behave changes the manners for what comes next.
func (h *fakeHost) behave(m manners) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.manners = m
}

func (h *fakeHost) asked(ctx context.Context, kind string, payload []byte, say func([]byte) error) error {
	h.mu.Lock()
	answer := h.manners.answer
	h.mu.Unlock()
	if answer == nil {
		return errors.New("no answer today")
	}
	return answer(ctx, kind, payload, say)
}

// OnIntent makes an intent true.
func (h *fakeHost) OnIntent(in vnet.Intent) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen = append(h.seen, in)
	if h.manners.deaf {
		return
	}
	if in.Gone {
		delete(h.ports, in.Port)
		h.report(in, vnet.Status{Epoch: in.Current.Epoch, Phase: vnet.StatusGone, Power: vnet.PowerAbsent})
		return
	}
	p := h.ports[in.Port]
	if p == nil {
		p = &fakePort{}
		h.ports[in.Port] = p
	}
	if in.Next != nil && p.prepared != in.Next.Epoch {
		p.prepared = in.Next.Epoch
		h.stage(in)
	}
	if in.Current.Epoch > p.inForce {
		p.inForce = in.Current.Epoch
		p.power = vnet.PowerOn
		h.flip(in, p)
	}
	if m := in.Machine; m != nil && m.Power != p.power {
		p.power = m.Power
		p.said.Power = m.Power
		h.report(in, p.said)
	}
}

func (h *fakeHost) stage(in vnet.Intent) {
	s := vnet.Status{Epoch: in.Next.Epoch, Phase: vnet.StatusPrepared, Power: vnet.PowerOn}
	if h.manners.refuse != "" {
		s.Phase, s.Error = vnet.StatusRefused, h.manners.refuse
	}
	h.report(in, s)
}

// flip says the steps of a port that came to its current place.
func (h *fakeHost) flip(in vnet.Intent, p *fakePort) {
	last := vnet.StatusConfirmed
	if h.manners.upTo != nil {
		last = h.manners.upTo(in.Current)
	} else if in.Current.Document == nil {
		last = vnet.StatusLeased
	}
	s := vnet.Status{Epoch: in.Current.Epoch, Power: vnet.PowerOn}
	for phase := vnet.StatusFlipped; phase <= last && phase <= vnet.StatusConfirmed; phase++ {
		s.Phase = phase
		s.Hops = append(s.Hops, vnet.Hop{Name: phase.String(), At: time.Now()})
		if h.manners.resets {
			s.Hops = append(s.Hops, vnet.Hop{Name: vnet.HopReset, At: time.Now()})
		}
		if phase == vnet.StatusLeased {
			s.Rung, s.Blackout = "bounce 20ms", 17*time.Millisecond
		}
		if phase == vnet.StatusConfirmed {
			s.Guest = h.guestOf(in)
			if !s.Guest.OK {
				s.Phase = vnet.StatusPublished
			}
		}
		h.report(in, s)
	}
	p.said = s
	if last == vnet.StatusFailed {
		h.report(in, vnet.Status{Epoch: in.Current.Epoch, Phase: vnet.StatusFailed, Power: vnet.PowerOn, Error: "no DHCP exchange was seen"})
	}
}

func (h *fakeHost) guestOf(in vnet.Intent) *vnet.GuestReport {
	d := in.Current.Document
	g := &vnet.GuestReport{Epoch: in.Current.Epoch, Kind: vnet.ReportFinal, OK: true, BootID: "boot-of-" + in.VM, Hostname: d.Hostname, At: time.Now()}
	if d.Partial() {
		g.Kind = vnet.ReportPartial
	}
	if h.manners.guest != nil {
		h.manners.guest(in.Current, g)
	}
	return g
}

func (h *fakeHost) report(in vnet.Intent, s vnet.Status) {
	if h.manners.hook != nil {
		h.manners.hook(s.Phase, in.Port)
	}
	s.Port = in.Port
	s.Hops = append([]vnet.Hop(nil), s.Hops...)
	h.client.Report(s)
}

// intent returns the last intent of a port that came.
func (h *fakeHost) intent(port string) (vnet.Intent, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := len(h.seen) - 1; i >= 0; i-- {
		if h.seen[i].Port == port {
			return h.seen[i], true
		}
	}
	return vnet.Intent{}, false
}

// The rest of [client.Handler] is of no interest here.

func (h *fakeHost) OnResync()                       {}
func (h *fakeHost) OnIntentGone(string)             {}
func (h *fakeHost) OnMapping(vnet.Mapping)          {}
func (h *fakeHost) OnMappingGone(vnet.VNI, vnet.CA) {}
func (h *fakeHost) OnGroup(vnet.Group)              {}
func (h *fakeHost) OnGroupGone(vnet.VNI, string)    {}
func (h *fakeHost) OnService(vnet.Service)          {}
func (h *fakeHost) OnServiceGone(vnet.VNI, string)  {}
func (h *fakeHost) OnNetworkSynced(vnet.VNI, int64) {}
func (h *fakeHost) OnNetworkGone(vnet.VNI)          {}
func (h *fakeHost) OnHost(vnet.HostInfo)            {}
func (h *fakeHost) OnHostGone(string)               {}
func (h *fakeHost) OnSynced(int64)                  {}

// attachOnce tries to attach a host and returns what it was told.
func (w *world) attachOnce(info vnet.HostInfo) error {
	w.t.Helper()
	tls, err := files(w.t, info.Name).ClientTLS(quiet())
	if err != nil {
		w.t.Fatal(err)
	}
	c, err := client.New(client.Config{Endpoints: []string{w.addr}, TLS: tls, Host: info, Session: 5, Log: quiet(), MaxWait: 50 * time.Millisecond}, &fakeHost{t: w.t})
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(w.ctx)
	var running sync.WaitGroup
	running.Go(func() { _ = c.Run(ctx) })
	defer running.Wait()
	defer stop()
	w.wait("an answer to host "+info.Name, func() error {
		if err := c.Err(); err == nil || status.Code(err) == codes.Unavailable { // a server that has just begun
			return fmt.Errorf("none yet: %v", err)
		}
		return nil
	})
	return c.Err()
}

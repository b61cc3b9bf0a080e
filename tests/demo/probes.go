package demo

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"path/filepath"
	"sync"
	"time"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
	"replug/tests/cluster"
	"replug/tests/lab"
)

const (
	probeText = "replug probe from "
	probeRate = 500  // a second, from each peer to each address
	probeLead = 3000 // probes sent before the move begins
)

// probes go from the peers of both networks to the VM's old and new address,
// before, during and after a move. What reaches the VM is captured on its tap.
type probes struct {
	what     moving
	senders  []*cluster.Sender
	pas      map[string]string         // by port name, as the API shows them before the move
	captures map[string]*lab.Recording // by port name; and "up0"
	stopped  sync.Once
	sent     int
}

// startProbes captures the tap of each VM that the move may be about, and the
// uplink, then lets the peers probe.
func (p *player) startProbes(what moving) (*probes, error) {
	o := &probes{what: what, captures: make(map[string]*lab.Recording), pas: make(map[string]string)}
	vms, err := p.candidates(what)
	if err != nil {
		return nil, err
	}
	h1 := p.world.lab.Host(1)
	devices := map[string]string{"up0": "up0"}
	for _, vm := range vms {
		o.pas[vm.Port.Name] = vm.Port.Pa
		devices[vm.Port.Name] = fmt.Sprintf("rp-tap%d", vm.Port.Id)
	}
	for name, dev := range devices {
		c, err := h1.Capture(dev, filepath.Join(h1.Dir(), fmt.Sprintf("%s-%s.pcap", what.to, dev)))
		if err != nil {
			o.stop()
			return nil, err
		}
		o.captures[name] = c
	}
	for network, peer := range p.world.peers {
		for _, ip := range []string{redIP, blueIP} {
			s, err := cluster.StartSender(peer.Node, netip.AddrPortFrom(netip.MustParseAddr(ip), 7777), probeRate, []byte(probeText+network))
			if err != nil {
				o.stop()
				return nil, err
			}
			o.senders = append(o.senders, s)
		}
	}
	return o, nil
}

// candidates are the VMs that the move may be about: one, or all of the pool.
func (p *player) candidates(what moving) ([]*pb.VM, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if what.vm != "" {
		vm, err := p.world.vm(ctx, what.vm)
		return []*pb.VM{vm}, err
	}
	conn, err := p.world.cluster.Conn()
	if err != nil {
		return nil, err
	}
	r, err := pb.NewVMsClient(conn).ListVMs(ctx, &pb.ListVMsRequest{Tenant: "platform"})
	return r.GetVms(), err
}

// warmUp waits until enough probes have been sent before the move.
func (o *probes) warmUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return lab.Until(ctx, "probes before the move", func() error {
		if n := o.count(); n < probeLead {
			return fmt.Errorf("%d of %d are sent", n, probeLead)
		}
		return nil
	})
}

func (o *probes) count() (n int) {
	for _, s := range o.senders {
		n += s.Sent()
	}
	return n
}

// stop ends probes and captures.
func (o *probes) stop() {
	o.stopped.Do(func() {
		for _, s := range o.senders {
			s.Stop()
		}
		o.sent = o.count()
		for _, c := range o.captures {
			_ = c.Stop() // a capture that failed is too short, and judged so
		}
	})
}

// judge reads the captures: which probes reached the VM on which side of the
// flip, and which outer source address its frames had.
func (o *probes) judge(ctx context.Context, m *Move, s *pb.Swap, total *Leaks) error {
	// As many probes after the move as before it.
	before := o.count()
	if err := lab.Until(ctx, "probes after the move", func() error {
		if n := o.count() - before; n < probeLead {
			return fmt.Errorf("%d of %d are sent", n, probeLead)
		}
		return nil
	}); err != nil {
		return err
	}
	o.stop()
	flip, err := flipOf(s)
	if err != nil {
		return err
	}
	frames, err := lab.ReadPcap(o.captures[s.Port].File())
	if err != nil {
		return err
	}
	mac, err := vnet.ParseMAC(s.Mac)
	if err != nil {
		return err
	}
	leaks, arrived := countLeaks(frames, mac, flip, s.Before.Network, s.After.Network)
	for _, network := range []string{o.what.from, o.what.to} { // none is let into the pool
		if network != "" && arrived[network] == 0 {
			return fmt.Errorf("no probe of %s reached the VM: this proves nothing", network)
		}
	}
	total.Probes += o.sent
	total.OldAfterFlip += leaks.OldAfterFlip
	total.NewBeforeFlip += leaks.NewBeforeFlip
	wire, err := lab.ReadPcap(o.captures["up0"].File())
	if err != nil {
		return err
	}
	if m.PABefore, m.PAAfter, err = outerSources(wire, mac, flip.done); err != nil {
		return err
	}
	// A pooled VM is isolated: nothing of it is on the wire before the claim.
	if m.PABefore == "" && o.what.from == "" {
		m.PABefore = o.pas[s.Port]
	}
	return nil
}

// Offsets in a VXLAN frame over IPv4 (RFC 7348, section 5).
const (
	outerSource = 14 + 12
	outerPort   = 14 + 20 + 2
	innerMAC    = 14 + 20 + 8 + 8 + 6
	vxlanPort   = 4789
)

// outerSources returns the PA in the last encapsulated frame of the VM before
// the flip, if there was any, and in the last one after it.
func outerSources(frames []lab.Frame, mac vnet.MAC, flip time.Time) (before, after string, err error) {
	for _, f := range frames {
		if len(f.Data) < innerMAC+6 || binary.BigEndian.Uint16(f.Data[outerPort:]) != vxlanPort || !bytes.Equal(f.Data[innerMAC:innerMAC+6], mac[:]) {
			continue
		}
		pa := netip.AddrFrom4([4]byte(f.Data[outerSource : outerSource+4])).String()
		if f.At.Before(flip) {
			before = pa
		} else {
			after = pa
		}
	}
	if after == "" {
		err = fmt.Errorf("no frame of %s was seen on the wire after the flip", mac)
	}
	return before, after, err
}

package control

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
)

// A VM deleted in mid-swap: the swap ends abandoned, both addresses come free,
// nothing is left.
func TestDeleteInMidSwap(t *testing.T) {
	for _, c := range []struct {
		name string
		upTo vnet.StatusPhase
		deaf bool
	}{
		{"while it is staged", 0, true},
		{"after the flip", vnet.StatusFlipped, false},
		{"while the guest configures itself", vnet.StatusPublished, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.Rest = 20 * time.Millisecond })
			w.furnish()
			h := w.host("h7", 7)
			before := w.rows()
			w.vm("web-1", "red", "10.17.34.51")
			h.behave(manners{deaf: c.deaf, upTo: func(vnet.Place) vnet.StatusPhase { return c.upTo }})
			op := w.as("olga")
			s := must(op.StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: "s", Tenant: "acme", Vm: "web-1", Network: "blue", StageBudget: durationpb.New(time.Minute)}))(t)
			w.wait("the swap is where it is to be", func() error {
				if in, _ := h.intent("vm-1.0"); c.deaf && in.Next == nil {
					return errors.New("nothing to stage yet")
				} else if c.deaf {
					return nil
				}
				p, err := op.GetPort(w.ctx, &pb.GetPortRequest{Name: "vm-1.0"})
				if err == nil && (p.Network != "blue" || p.Status != c.upTo.String()) {
					err = fmt.Errorf("%s in %s", p.Status, p.Network)
				}
				return err
			})
			h.behave(manners{})
			must(op.DeleteVM(w.ctx, &pb.DeleteVMRequest{RequestId: "d", Tenant: "acme", Name: "web-1"}))(t)
			if s := w.swapDone(s.Id); s.Phase != "abandoned" {
				t.Errorf("swap %v", s)
			}
			w.wait("nothing is left", func() error {
				after := w.rows()
				for k := range after {
					if under(k, "/replug/swaps/") {
						delete(after, k)
					}
				}
				if d := differ(before, after); d != "" {
					return errors.New(d)
				}
				return nil
			})
		})
	}
}

// Invariant 3: a server that is restarted in the middle of swaps goes on where it
// was, whichever phase that is.
func TestRestartInMidSwap(t *testing.T) {
	w := newWorld(t, nil)
	w.furnish()
	h := w.host("h7", 7)
	w.vm("web-1", "red", "")
	for i, phase := range []vnet.StatusPhase{vnet.StatusPrepared, vnet.StatusFlipped, vnet.StatusLeased, vnet.StatusPublished} {
		network := []string{"blue", "red"}[i%2]
		reached, gone := make(chan struct{}, 99), make(chan struct{})
		h.behave(manners{hook: func(p vnet.StatusPhase, _ string) {
			if p == phase {
				reached <- struct{}{}
				<-gone // said only after the server is back
			}
		}})
		s := must(w.as("olga").StartSwap(w.ctx, &pb.StartSwapRequest{RequestId: fmt.Sprint("s", i), Tenant: "acme", Vm: "web-1", Network: network,
			StageBudget: durationpb.New(20 * time.Second), LeaseBudget: durationpb.New(20 * time.Second)}))(t)
		<-reached
		w.stop()
		close(gone)
		w.start()
		if s = w.swapDone(s.Id); !s.Ok {
			t.Errorf("restart at %s: %v", phase, s)
		}
	}
}

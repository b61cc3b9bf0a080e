package control

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
)

// A guest that reads its metadata once, at its first boot, would know nothing of whom it
// is claimed by: it has no pool, whether its host is here when one is asked for or comes
// later. A claim of it is made from scratch, and says what is not known of it.
func TestNoPoolOfGuestsThatBootOnce(t *testing.T) {
	for _, p := range []vnet.Personality{vnet.PersonalityEC2, vnet.PersonalityOpenStack, vnet.PersonalityNoCloud} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s late %t", p, late), func(t *testing.T) {
				w := newWorld(t, nil)
				w.furnish()
				info := hostInfo("h7", 7)
				info.Personalities = map[string]vnet.Personality{"small": p}
				set := func() error {
					_, err := w.as("olga").SetPool(w.ctx, &pb.SetPoolRequest{RequestId: "pool", Type: "tiny", Size: new(int32(1))})
					return err
				}
				said := "never again: claims of it are made from scratch"
				if late {
					if err := set(); err != nil {
						t.Fatal(err)
					}
				}
				h := w.hostOf(info, 3)
				h.behave(manners{upTo: func(vnet.Place) vnet.StatusPhase { return vnet.StatusPublished }})
				if late {
					w.wait("the pool's word", func() error {
						got := must(w.as("olga").GetPool(w.ctx, &pb.GetPoolRequest{Type: "tiny"}))(t)
						if !strings.Contains(got.Error, said) {
							return fmt.Errorf("%+v", got)
						}
						return nil
					})
				} else if err := set(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), said) {
					t.Fatalf("a pool of it: %v", err)
				}
				claim := w.claimed("web-1", "red", "10.17.34.51")
				if claim.Phase != "ready" || claim.Source != "scratch" || !strings.Contains(claim.Note, "made from scratch; the image's personality is") {
					t.Errorf("claim %v", claim)
				}
			})
		}
	}
}

// What success means depends on the image: what its guest reports, and when. Of a
// plain one nobody reports anything; cloud-init reports when it leaves the pool, and
// never again.
func TestPersonalities(t *testing.T) {
	for _, c := range []struct {
		personality vnet.Personality
		silent      func(*vnet.Place) bool // where the guest says nothing
		claim, swap string                 // what proves them
		note        string
	}{
		{vnet.PersonalityAgent, func(*vnet.Place) bool { return false }, "guest", "guest", ""},
		{vnet.PersonalityCloudInit, func(p *vnet.Place) bool { return p.Network == "blue" }, "guest", "lease", ""},
		{vnet.PersonalityPlain, func(*vnet.Place) bool { return true }, "lease", "lease", `"plain": its lease and its traffic are the proof`},
	} {
		t.Run(string(c.personality), func(t *testing.T) {
			w := newWorld(t, nil)
			w.furnish()
			info := hostInfo("h7", 7)
			info.Personalities = map[string]vnet.Personality{"small": c.personality}
			h := w.hostOf(info, 3)
			h.behave(manners{upTo: func(p vnet.Place) vnet.StatusPhase {
				if c.silent(&p) {
					return vnet.StatusPublished
				}
				return vnet.StatusConfirmed
			}})
			w.pooled(1)
			claim := w.claimed("web-1", "red", "10.17.34.51")
			if claim.Phase != "ready" || claim.Source != "pool" || !strings.Contains(claim.Note, c.note) || c.note == "" && claim.Note != "" {
				t.Fatalf("claim %v", claim)
			}
			in, _ := h.intent(claim.View.Port.Name)
			if claim.View.Personality != string(c.personality) || in.Machine.Personality != c.personality {
				t.Errorf("VM has personality %q, its machine %q", claim.View.Personality, in.Machine.Personality)
			}
			s := must(w.as("olga").GetSwap(w.ctx, &pb.GetSwapRequest{Id: claim.Swap}))(t)
			if s.Confirm != c.claim {
				t.Errorf("the claim was proved by %q, want %q", s.Confirm, c.claim)
			}
			q := &pb.StartSwapRequest{RequestId: "s", Tenant: "acme", Vm: "web-1", Network: "blue"}
			if s := w.swapped(q); s.Confirm != c.swap || !s.Ok {
				t.Errorf("the swap: %v, want it proved by %q", s, c.swap)
			}
			if c.swap == "guest" {
				return
			}
			q.RequestId, q.Network, q.Confirm = "s2", "red", "guest"
			if _, err := w.as("olga").StartSwap(w.ctx, q); err == nil || !strings.Contains(err.Error(), "use confirm: lease or caller") {
				t.Errorf("a swap that waits for a report that never comes: %v", err)
			}
		})
	}
}

package e2e_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// bystanders starts two guests that no swap concerns, on both hosts, and a stream
// between them. Its loss is judged by the function it returns: nothing may be
// lost (invariant 7).
func (w *world) bystanders(ctx context.Context, t *testing.T) (check func()) {
	t.Helper()
	a, b := w.guest(ctx, t, 1, "green", true), w.guest(ctx, t, 2, "green", true)
	reaches(ctx, t, a.Node, b.ip)
	s, err := cluster.StartStream(a.Node, b.Node, netip.AddrPortFrom(netip.MustParseAddr(b.ip), 9137), 1000)
	if err != nil {
		t.Fatal(err)
	}
	over := false
	t.Cleanup(func() {
		if !over {
			s.Stop()
		}
	})
	return func() {
		t.Helper()
		over = true
		const few = 50 // of which it would prove nothing that none is lost
		err := lab.Until(ctx, "frames of the bystanders", func() error {
			if n := s.Arrived(); n < few {
				return fmt.Errorf("%d have arrived", n)
			}
			return nil
		})
		if sent, lost := s.Stop(); lost != 0 || err != nil {
			t.Errorf("the bystanders lost %d of %d frames (%v)", lost, sent, err)
		}
	}
}

// The agent of a swap's host is dead: the swap ends undone at its stage budget,
// and nobody notices. With the agent back, all goes on (invariants 3, 7).
func TestHostDead(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	reaches(ctx, t, w.peer(ctx, t, "red").Node, web.ip)
	ip := w.ip()
	web.also(ctx, t, ip)
	lossless := w.bystanders(ctx, t)
	if err := w.KillHost(ctx, 1); err != nil {
		t.Fatal(err)
	}
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", StageBudget: durationpb.New(700 * time.Millisecond)})
	s = w.ends(ctx, t, s.Id, "undone")
	for _, word := range []string{"h1", "not connected", "nothing has changed"} {
		if !strings.Contains(s.Error, word) {
			t.Errorf("the swap says %q, want %q in it", s.Error, word)
		}
	}
	if got := fmt.Sprint(hops(s)); strings.Contains(got, "switched") {
		t.Errorf("a swap to a dead host got further than reserved: %s", got)
	}
	reaches(ctx, t, w.peer(ctx, t, "red").Node, web.ip)
	if err := w.StartHost(ctx, 1); err != nil {
		t.Fatal(err)
	}
	if err := w.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none"})
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
	lossless()
}

// Server and store are down: traffic flows, DHCP is answered, metadata is served,
// and only changes fail, at once and clearly (invariant 6). A swap that was
// reserved then goes on when the server is back.
func TestStoreDown(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	lossless := w.bystanders(ctx, t)
	ip := w.ip()
	web.also(ctx, t, ip)
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Confirm: "caller"})
	w.in(ctx, t, s.Id, "published")
	if err := w.KillServer(ctx); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	_, said, code := w.cli(ctx, t, "port", "swap", web.port, "--tenant", tenant, "--network", "green", "--timeout", "20s")
	if took := time.Since(begin); code != 5 || took > 10*time.Second {
		t.Errorf("a change without a server: exit code %d after %s: %s; want 5 at once", code, took, said)
	}
	dhcp, err := web.StartDHCP(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := dhcp.Says(ctx, "leased "+ip); err != nil {
		t.Errorf("DHCP without a server: %v", err)
	}
	out, err := web.Sh(ctx, "wget -qO- --header 'Metadata: true' http://169.254.169.254/replug/v1/")
	if err != nil || !strings.Contains(string(out), `"v1"`) {
		t.Errorf("metadata without a server: %v, %s", err, out)
	}
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
	if err := dhcp.Stop(ctx); err != nil && ctx.Err() != nil {
		t.Fatal(err)
	}
	if err := w.StartServer(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Connected(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := pb.NewSwapsClient(w.conn).ConfirmSwap(ctx, &pb.ConfirmSwapRequest{RequestId: w.id(), Id: s.Id}); err != nil {
		t.Fatal(err)
	}
	w.ends(ctx, t, s.Id, "committed")
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
	lossless()
}

package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
)

// A host without room for the rules, or the mappings, that a port would need in
// its next network refuses when the swap is staged: it says what, why, what next,
// and the port and its connections are as they were.
func TestHostIsFull(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web, other, peer := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 1, "red", true), w.peer(ctx, t, "red")
	rules := make([]*pb.Rule, 20)
	for i := range rules {
		rules[i] = &pb.Rule{Name: fmt.Sprint("r", i), Priority: 100, Direction: "in", Action: "allow", Protocol: "tcp", MinPort: uint32(8000 + i)}
	}
	groups := pb.NewGroupsClient(w.conn)
	if _, err := groups.CreateGroup(ctx, &pb.CreateGroupRequest{RequestId: w.id(), Tenant: tenant, Network: "blue", Name: "wide", Rules: rules}); err != nil {
		t.Fatal(err)
	}
	if err := w.network(ctx, "crowd"); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		if _, err := pb.NewNetworksClient(w.conn).AddVTEP(ctx, &pb.AddVTEPRequest{RequestId: w.id(), Tenant: tenant, Vtep: &pb.VTEP{
			Name: fmt.Sprint("full-", i), Network: "crowd", Ip: fmt.Sprintf("10.20.99.%d", 40+i), Pa: "192.0.2.7", Mac: fmt.Sprintf("02:00:5e:10:20:%02x", 0x40+i)}}); err != nil {
			t.Fatal(err)
		}
	}
	mappings := metrics(ctx, t, w.Lab.Host(1), 9417)["replug_mappings"]
	restart := func(ctx context.Context, args ...string) {
		t.Helper()
		if err := errors.Join(w.KillHost(ctx, 1), w.StartHost(ctx, 1, args...), w.Connected(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	restart(ctx, "--max-rules", "32", "--max-mappings", fmt.Sprint(mappings+4))
	small := true
	t.Cleanup(func() { // other tests need a host with room
		bounded, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if small {
			restart(bounded)
		}
	})
	ip := w.ip()
	other.also(ctx, t, ip)
	other.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Groups: []string{"wide"}})

	before, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		what, network string
		groups, words []string
	}{
		{"rules", "blue", []string{"wide"}, []string{"20 rules", "network blue", "--max-rules"}},
		{"mappings", "crowd", nil, []string{"network crowd", "mappings", "--max-mappings"}},
	} {
		s := web.start(ctx, t, &pb.StartSwapRequest{Network: c.network, Ip: w.ip(), Trigger: "none", Groups: c.groups, StageBudget: durationpb.New(8 * time.Second)})
		s = w.ends(ctx, t, s.Id, "undone")
		for _, word := range c.words {
			if !strings.Contains(s.Error, word) {
				t.Errorf("no room for %s: the swap says %q, want %q in it", c.what, s.Error, word)
			}
		}
		after, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
		if err != nil || after.Network != "red" || after.Epoch != before.Epoch {
			t.Errorf("no room for %s: the port is at %v (%v), want it as it was: %v", c.what, after, err, before)
		}
		reaches(ctx, t, peer.Node, web.ip)
	}
	restart(ctx)
	small = false
	ip = w.ip()
	web.also(ctx, t, ip)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Groups: []string{"wide"}})
}

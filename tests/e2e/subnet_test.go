package e2e_test

import (
	"context"
	"fmt"
	"testing"

	pb "replug/control/controlpb"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// A live network gets one more subnet of each family: guests of different subnets
// talk, on one host and across, the one that was there before included.
func TestSubnets(t *testing.T) {
	w := shared
	ctx := w.within(t)
	east := fmt.Sprint("east", w.used.Add(1))
	if _, err := pb.NewNetworksClient(w.conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: w.id(), Network: &pb.Network{
		Moniker: east, Tenant: tenant, Subnets: []*pb.Subnet{{Prefix: "10.41.0.0/16"}, {Prefix: "fd41::/64"}}}}); err != nil {
		t.Fatal(err)
	}
	web := w.dual(ctx, t, 1, east, "10.41.7.9", "fd41::7:9")
	for _, prefix := range []string{"10.42.0.0/16", "fd42::/64"} {
		w.must(ctx, t, "network", "subnet", "add", east, prefix)
	}
	near := w.dual(ctx, t, 1, east, "10.42.7.17", "fd42::7:17")
	far := w.dual(ctx, t, 2, east, "10.42.8.33", "fd42::8:33")
	for _, to := range []*member{near, far} {
		for _, ip := range []string{to.ip, to.v6(ctx, t)} {
			if err := lab.Until(ctx, "the way to "+ip, func() error {
				if got, code := w.trace(ctx, t, "--from", web.port, "--to", ip, "tcp/9731"); code != 0 {
					return fmt.Errorf("a trace: %s", got.Summary)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
			talks(ctx, t, web.Node, to.Node, ip)
		}
	}
	for _, ip := range []string{web.ip, web.v6(ctx, t)} {
		talks(ctx, t, far.Node, web.Node, ip)
	}
}

// dual attaches a guest that has an address of each family, set by hand, and its
// gateways.
func (w *world) dual(ctx context.Context, t *testing.T, host int, network, ip, ip6 string) *member {
	t.Helper()
	m := w.attach(ctx, t, cluster.Attachment{Host: host, Network: network, IP: ip, IP6: ip6, Static: true})
	if got := m.six(ctx, t); got != ip6 {
		t.Fatalf("%s was given %s, not %s", m.port, got, ip6)
	}
	return m
}

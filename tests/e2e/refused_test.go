package e2e_test

import (
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
)

// A swap that can't be is refused with the reason, by plan and start alike, and
// neither writes anything nor holds an address (invariant 10, MISSION S57, S60).
func TestRefusedSwaps(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	w.peer(ctx, t, "blue")
	swaps, admin := pb.NewSwapsClient(w.conn), pb.NewAdminClient(w.conn)
	before, err := admin.GetCluster(ctx, &pb.GetClusterRequest{})
	if err != nil {
		t.Fatal(err)
	}
	free := w.ip()
	for _, c := range []struct {
		name  string
		r     *pb.StartSwapRequest
		code  codes.Code
		words []string
	}{
		{"unknown moniker", &pb.StartSwapRequest{Network: "mauve", Ip: free}, codes.NotFound, []string{"mauve"}},
		{"no moniker", &pb.StartSwapRequest{Ip: free}, codes.InvalidArgument, nil},
		{"address outside", &pb.StartSwapRequest{Network: "blue", Ip: "10.21.7.9"}, codes.InvalidArgument, []string{"10.21.7.9", "10.20.0.0/16"}},
		{"address taken", &pb.StartSwapRequest{Network: "blue", Ip: peerIP}, codes.FailedPrecondition, []string{peerIP}},
		{"the gateway's address", &pb.StartSwapRequest{Network: "blue", Ip: "10.20.0.1"}, codes.InvalidArgument, []string{"10.20.0.1", "gateway"}},
		{"the network's address", &pb.StartSwapRequest{Network: "blue", Ip: "10.20.0.0"}, codes.InvalidArgument, []string{"10.20.0.0"}},
		{"the broadcast address", &pb.StartSwapRequest{Network: "blue", Ip: "10.20.255.255"}, codes.InvalidArgument, []string{"10.20.255.255"}},
		{"IPv6", &pb.StartSwapRequest{Network: "blue", Ip: "fd00:7::9"}, codes.InvalidArgument, []string{"fd00:7::9"}},
		{"where it is already", &pb.StartSwapRequest{Network: "red"}, codes.FailedPrecondition, []string{"already", web.ip}},
		{"where it is already, by address", &pb.StartSwapRequest{Network: "red", Ip: web.ip}, codes.FailedPrecondition, []string{"already", web.ip}},
		{"unknown confirm", &pb.StartSwapRequest{Network: "blue", Ip: free, Confirm: "maybe"}, codes.InvalidArgument, []string{"maybe"}},
		{"unknown trigger", &pb.StartSwapRequest{Network: "blue", Ip: free, Trigger: "shout"}, codes.InvalidArgument, []string{"shout"}},
		{"a guest's proof without our agent", &pb.StartSwapRequest{Network: "blue", Ip: free, Confirm: "guest"}, codes.InvalidArgument, []string{"confirm"}},
		{"a host name that is not ours to change", &pb.StartSwapRequest{Network: "blue", Ip: free, Hostname: "b-1"}, codes.InvalidArgument, []string{"host name"}},
		{"negative budget", &pb.StartSwapRequest{Network: "blue", Ip: free, StageBudget: durationpb.New(-time.Second)}, codes.InvalidArgument, []string{"budget"}},
		{"VM and port", &pb.StartSwapRequest{Network: "blue", Ip: free, Vm: "web"}, codes.InvalidArgument, []string{"either"}},
		{"another tenant's port", &pb.StartSwapRequest{Tenant: "rival", Network: "blue", Ip: free}, codes.NotFound, []string{"port"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := proto.Clone(c.r).(*pb.StartSwapRequest)
			r.RequestId, r.Port = w.id(), web.port
			if r.Tenant == "" {
				r.Tenant = tenant
			}
			_, err := swaps.StartSwap(ctx, r)
			refused(t, err, c.code, c.words...)
			_, err = swaps.PlanSwap(ctx, r)
			refused(t, err, c.code, c.words...)
		})
	}
	_, err = swaps.StartSwap(ctx, &pb.StartSwapRequest{Tenant: tenant, Port: web.port, Network: "blue", Ip: free})
	refused(t, err, codes.InvalidArgument, "request")
	after, err := admin.GetCluster(ctx, &pb.GetClusterRequest{})
	if err != nil || before.StoreTxns != after.StoreTxns {
		t.Errorf("refused swaps were written: %v, then %v (%v)", before, after, err)
	}
	web.also(ctx, t, free)
	web.move(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: free, Trigger: "none"})
}

// The same request again is the same swap; another one with its id is refused
// (invariant 4).
func TestRequestTwice(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	ip := w.ip()
	web.also(ctx, t, ip)
	r := &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none"}
	first := web.move(ctx, t, r)
	swaps := pb.NewSwapsClient(w.conn)
	again, err := swaps.StartSwap(ctx, r)
	if err != nil || again.Id != first.Id || !again.Ok {
		t.Errorf("the same request gave %v (%v), want swap %s", again, err, first.Id)
	}
	r.Ip = w.ip()
	_, err = swaps.StartSwap(ctx, r)
	refused(t, err, codes.AlreadyExists, r.RequestId)
	p, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	if err != nil || p.Epoch != first.After.Epoch {
		t.Errorf("the port is at %v (%v), want epoch %s", p, err, first.After.Epoch)
	}
}

// While a swap waits for its caller, a second one is refused, both networks can't
// be deleted, its address can't be taken; cancelled, everything is back and free.
func TestOneSwapAtATime(t *testing.T) {
	w := shared
	ctx := w.within(t)
	if err := w.network(ctx, "held"); err != nil {
		t.Fatal(err)
	}
	web, other := w.guest(ctx, t, 1, "red", true), w.guest(ctx, t, 2, "red", true)
	ip := w.ip()
	web.also(ctx, t, ip)
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "held", Ip: ip, Trigger: "none", Confirm: "caller"})
	w.in(ctx, t, s.Id, "published")
	swaps, networks := pb.NewSwapsClient(w.conn), pb.NewNetworksClient(w.conn)
	_, err := swaps.StartSwap(ctx, &pb.StartSwapRequest{RequestId: w.id(), Tenant: tenant, Port: web.port, Network: "blue", Ip: w.ip()})
	refused(t, err, codes.FailedPrecondition, s.Id)
	_, err = swaps.StartSwap(ctx, &pb.StartSwapRequest{RequestId: w.id(), Tenant: tenant, Port: other.port, Network: "held", Ip: ip})
	refused(t, err, codes.FailedPrecondition, ip)
	_, err = networks.DeleteNetwork(ctx, &pb.DeleteNetworkRequest{RequestId: w.id(), Tenant: tenant, Moniker: "held"})
	refused(t, err, codes.FailedPrecondition, "held")
	if _, err := swaps.CancelSwap(ctx, &pb.CancelSwapRequest{RequestId: w.id(), Id: s.Id}); err != nil {
		t.Fatal(err)
	}
	s = w.ends(ctx, t, s.Id, "undone")
	reaches(ctx, t, w.peer(ctx, t, "red").Node, web.ip)
	_, err = swaps.CancelSwap(ctx, &pb.CancelSwapRequest{RequestId: w.id(), Id: s.Id})
	if err != nil {
		refused(t, err, codes.FailedPrecondition)
	}
	_, err = swaps.ConfirmSwap(ctx, &pb.ConfirmSwapRequest{RequestId: w.id(), Id: s.Id})
	refused(t, err, codes.FailedPrecondition)
	ip = w.ip()
	web.also(ctx, t, ip)
	s = web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Confirm: "caller"})
	w.in(ctx, t, s.Id, "published")
	if _, err := swaps.ConfirmSwap(ctx, &pb.ConfirmSwapRequest{RequestId: w.id(), Id: s.Id}); err != nil {
		t.Fatal(err)
	}
	w.ends(ctx, t, s.Id, "committed")
	reaches(ctx, t, w.peer(ctx, t, "blue").Node, ip)
}

// A caller that never confirms: the swap is undone by itself (invariant 3).
func TestUnconfirmedIsUndone(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	ip := w.ip()
	web.also(ctx, t, ip)
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Confirm: "caller", ConfirmBudget: durationpb.New(300 * time.Millisecond)})
	s = w.ends(ctx, t, s.Id, "undone")
	if s.Error == "" {
		t.Error("nobody says why it was undone")
	}
	reaches(ctx, t, w.peer(ctx, t, "red").Node, web.ip)
}

// A port that is detached in mid-swap ends the swap as abandoned.
func TestDetachedInMidSwap(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	ip := w.ip()
	web.also(ctx, t, ip)
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: ip, Trigger: "none", Confirm: "caller"})
	w.in(ctx, t, s.Id, "published")
	w.detach(t, web.port)
	w.ends(ctx, t, s.Id, "abandoned")
	// Neither network knows the addresses any more: nobody answers for them.
	_, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	refused(t, err, codes.NotFound)
}

// A guest whose tap is gone ends the swap while nothing has changed.
func TestGuestGoneIsNotSwapped(t *testing.T) {
	w := shared
	ctx := w.within(t)
	web := w.guest(ctx, t, 1, "red", true)
	if err := web.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
	s := web.start(ctx, t, &pb.StartSwapRequest{Network: "blue", Ip: w.ip(), StageBudget: durationpb.New(time.Second), LeaseBudget: durationpb.New(time.Second)})
	s = w.ends(ctx, t, s.Id, "undone")
	p, err := pb.NewPortsClient(w.conn).GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: web.port})
	if err != nil || p.Network != "red" || s.Error == "" {
		t.Errorf("the port is at %v (%v), the swap says %q; want red and a reason", p, err, s.Error)
	}
}

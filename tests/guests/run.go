package guests

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "replug/control/controlpb"
	"replug/directory/vnet"
	"replug/tests/cluster"
	"replug/tests/lab"
)

// A Row is a line of the table.
type Row struct {
	Client         string  `json:"client"`
	Family         string  `json:"family"`
	Follows        bool    `json:"follows"`
	Rung           string  `json:"rung"` // that worked most often
	P50            float64 `json:"ms_p50"`
	P99            float64 `json:"ms_p99"`
	Runs           int     `json:"runs"`
	OldAddressLeft bool    `json:"old_address_left"`
	Late           int     `json:"late,omitempty"` // swaps that a caller who asks for no lease budget would have seen undone
}

const tenant = "acme"

// apart is the time between two swaps of a guest: its kernel holds link messages
// back for a second after the last one (net/core/link_watch.c), and nobody swaps
// that often.
const apart = 1200 * time.Millisecond

// A World is a host with the real programs, for one family.
type World struct {
	Cluster *cluster.Cluster
	Family  Family
	Image   string // of BuildImage
	conn    *grpc.ClientConn
	routers map[string]netip.Addr // of the networks, by colour; of IPv6
	used    int
}

// NewWorld makes the family's networks in a cluster.
func NewWorld(ctx context.Context, c *cluster.Cluster, f Family, image string) (*World, error) {
	conn, err := c.Conn()
	if err != nil {
		return nil, err
	}
	w := &World{Cluster: c, Family: f, Image: image, conn: conn, routers: map[string]netip.Addr{}}
	_, err = pb.NewTenantsClient(conn).CreateTenant(ctx, &pb.CreateTenantRequest{RequestId: "tenant", Name: tenant})
	if err != nil {
		return nil, err
	}
	for _, colour := range []string{"red", "blue"} {
		n, err := pb.NewNetworksClient(conn).CreateNetwork(ctx, &pb.CreateNetworkRequest{RequestId: "network-" + w.network(colour),
			Network: &pb.Network{Moniker: w.network(colour), Tenant: tenant, Subnets: f.network(colour), Dns: f.dns(colour)}})
		if err != nil {
			return nil, fmt.Errorf("network %s: %w", w.network(colour), err)
		}
		w.routers[colour] = vnet.VNI(n.Vni).Gateway6()
	}
	return w, nil
}

// network is a moniker of the family's own.
func (w *World) network(colour string) string {
	return sprint("%s-%s", colour, w.Family.letter())
}

func (w *World) id() string {
	w.used++
	return sprint("%s-%d", w.network("guests"), w.used)
}

// A Subject is a guest that is swapped.
type Subject struct {
	*World
	machine
	mac      net.HardwareAddr
	name, at string
	now      []netip.Addr
	why      string   // the last one did not follow
	kept     string   // what was left of the old network
	restart  string   // of a network manager, if there was one
	story    []string // the timelines of the last line's swaps

	notBefore time.Time // the next swap
}

// Room makes a cheap guest for one client, VM a machine for all of them.
func (w *World) Room(ctx context.Context) (*Subject, error) { return w.subject(ctx, newRoom) }

// VM makes a machine for all clients.
func (w *World) VM(ctx context.Context) (*Subject, error) { return w.subject(ctx, newVM) }

func (w *World) subject(ctx context.Context, boot func(context.Context, *lab.Lab, string, string, string, net.HardwareAddr) (machine, error)) (*Subject, error) {
	mac := w.newMAC()
	name, l := sprint("c%d", w.used), w.Cluster.Lab
	m, err := boot(ctx, l, name, w.Image, filepath.Join(w.Cluster.Config.Bin, "replug-guest"), mac)
	if err != nil {
		return nil, err
	}
	return &Subject{World: w, machine: m}, nil
}

func (w *World) newMAC() net.HardwareAddr {
	w.used++
	return net.HardwareAddr{2, 0x6c, 7, 9, byte(w.used >> 8), byte(w.used)}
}

// attach makes a port of the guest's NIC. Each client has one of its own: the host
// remembers of a port which rung was of use.
func (s *Subject) attach(ctx context.Context) error {
	s.used++
	s.name, s.at = sprint("p%d", s.used), "red"
	p, err := pb.NewPortsClient(s.conn).AttachPort(ctx, &pb.AttachPortRequest{RequestId: s.id(), Tenant: tenant, Name: s.name,
		Host: s.Cluster.Lab.Host(1).Name, Tap: s.tap(), Mac: s.mac.String(), Monitor: s.monitor(), Network: s.network("red")})
	if err != nil {
		return err
	}
	s.now, err = parse(p.Addrs)
	return err
}

// detach ends the port, and waits until its host has let go of the NIC.
func (s *Subject) detach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ports := pb.NewPortsClient(s.conn)
	if _, err := ports.DetachPort(ctx, &pb.DetachPortRequest{RequestId: s.id(), Tenant: tenant, Name: s.name}); err != nil {
		return err
	}
	return lab.Until(ctx, "the end of port "+s.name, func() error {
		_, err := ports.GetPort(ctx, &pb.GetPortRequest{Tenant: tenant, Name: s.name})
		if status.Code(err) == codes.NotFound {
			return nil
		}
		return fmt.Errorf("it is there: %w", err)
	})
}

func parse(all []string) (addrs []netip.Addr, err error) {
	for _, a := range all {
		if p, err := netip.ParsePrefix(a); err == nil {
			addrs = append(addrs, p.Addr())
			continue
		}
		ip, err := netip.ParseAddr(a)
		if err != nil {
			return nil, err
		}
		addrs = append(addrs, ip)
	}
	return addrs, nil
}

// Try swaps the guest so many times while the client manages its NIC. A client that
// does not follow is tried once: its swap is undone.
func (s *Subject) Try(ctx context.Context, c Client, runs int) (row Row, err error) {
	row, s.why, s.kept = Row{Client: c.String(), Family: s.Family.Name, Follows: true}, "", ""
	s.restart, s.story = "", nil
	if s.mac, err = s.reset(ctx, s.newMAC()); err != nil {
		return row, err
	}
	if err := s.attach(ctx); err != nil {
		return row, err
	}
	defer func() { err = errors.Join(err, s.detach(context.WithoutCancel(ctx))) }()
	if err := s.begin(ctx, c); err != nil {
		return row, fmt.Errorf("%s: %w", c, err)
	}
	managers, err := s.managers(ctx)
	if err != nil {
		return row, err
	}
	var took []float64
	rungs := map[string]int{}
	s.notBefore = time.Now().Add(apart)
	for range runs {
		if err := s.rests(ctx, c); err != nil {
			return row, fmt.Errorf("%s: %w", c, err)
		}
		swap, ms, err := s.swap(ctx, c)
		s.notBefore = time.Now().Add(apart)
		if err != nil {
			return row, fmt.Errorf("%s: %w", c, err)
		}
		row.Runs++
		s.story = append(s.story, hops(swap))
		if !swap.Ok {
			row.Follows = false
			s.why = sprint("%s: %s", swap.Error, hops(swap))
			break
		}
		took = append(took, ms)
		if ms > usual {
			row.Late++
		}
		rungs[swap.Rung]++
		if row.OldAddressLeft { // which is known of the line: nobody waits for it again
			continue
		}
		wrong, err := s.left(ctx)
		if err != nil {
			return row, fmt.Errorf("%s: %w", c, err)
		}
		if wrong != "" {
			row.OldAddressLeft, s.kept = true, sprint("after swap %d: %s", row.Runs, wrong)
		}
	}
	after, err := s.managers(ctx)
	if err != nil {
		return row, err
	}
	if after != managers {
		s.restart = sprint("%s before, %s after %d swaps", managers, after, row.Runs)
	}
	for rung, n := range rungs {
		if n > rungs[row.Rung] {
			row.Rung = rung
		}
	}
	row.P50, row.P99 = percentile(took, 50), percentile(took, 99)
	return row, nil
}

// begin starts the client and waits until the guest has its first addresses.
func (s *Subject) begin(ctx context.Context, c Client) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := c.begin(ctx, s.machine); err != nil {
		return err
	}
	err := lab.Until(ctx, "the first addresses", func() error { return s.has(ctx, s.now) })
	if err != nil {
		err = fmt.Errorf("%w\nthe agent said:\n%s", err, s.log(context.WithoutCancel(ctx)))
	}
	return err
}

// rests returns when the guest can be swapped once more.
func (s *Subject) rests(ctx context.Context, c Client) error {
	if c.rest != "" {
		if out, err := s.sh(ctx, c.rest); err != nil {
			return fmt.Errorf("wait until it rests: %w: %s", err, out)
		}
	}
	time.Sleep(time.Until(s.notBefore))
	return nil
}

// has returns nil when the guest has all of these addresses.
func (s *Subject) has(ctx context.Context, all []netip.Addr) error {
	have, err := s.addrs(ctx)
	if err != nil {
		return err
	}
	return s.lacks(have, all)
}

// lacks returns an error if one of these addresses is not among those.
func (s *Subject) lacks(have []netip.Prefix, all []netip.Addr) error {
	for _, a := range all {
		if !slices.ContainsFunc(have, func(p netip.Prefix) bool { return p.Addr() == a }) {
			return fmt.Errorf("it has %v, not %s", have, a)
		}
	}
	return nil
}

// slowest is the time that the client of an emulated guest has until its swap is
// undone: dhcpcd's scripts alone take seconds there. What took longer than the usual
// lease budget (ms) is counted in the table.
const (
	slowest = time.Minute
	usual   = 25_000
)

// swap moves the guest to the other network and waits for the end. It returns how
// many ms it took from the call until the guest was seen on its new address.
func (s *Subject) swap(ctx context.Context, c Client) (*pb.Swap, float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	var budget *durationpb.Duration // the default: nobody waits longer for one that won't come
	if c.Ought(s.Family) {
		budget = durationpb.New(slowest)
	}
	to := map[string]string{"red": "blue", "blue": "red"}[s.at]
	client := pb.NewSwapsClient(s.conn)
	begin := time.Now()
	swap, err := client.StartSwap(ctx, &pb.StartSwapRequest{RequestId: s.id(), Tenant: tenant, Port: s.name, Network: s.network(to), Confirm: "lease", Trigger: "bounce", LeaseBudget: budget})
	if err != nil {
		return nil, 0, err
	}
	stream, err := client.WatchSwap(ctx, &pb.GetSwapRequest{Id: swap.Id})
	if err != nil {
		return nil, 0, err
	}
	for !swap.Done {
		if swap, err = stream.Recv(); err != nil {
			return nil, 0, fmt.Errorf("swap: %w", err)
		}
	}
	took := math.NaN()
	for _, h := range swap.Timeline {
		if h.Name == "seen" {
			took = float64(h.At.AsTime().Sub(begin).Microseconds()) / 1000
		}
	}
	if !swap.Ok {
		return swap, took, nil
	}
	s.at = to
	s.now, err = parse(swap.After.Addrs)
	return swap, took, err
}

// left waits until the guest has its new addresses and nothing of the old network, as
// long as a client may need for that, and returns what is wrong then: an address, a
// route to the old network or by its router, a name server.
func (s *Subject) left(ctx context.Context) (wrong string, err error) {
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(300 * time.Millisecond) {
		out, err := s.sh(ctx, settings)
		if err != nil {
			return "", fmt.Errorf("look for what is left of the old network: %w: %s", err, out)
		}
		wrong, have := s.leftovers(out)
		if err := s.lacks(have, s.now); err != nil && wrong == "" {
			wrong = err.Error()
		}
		if wrong == "" || time.Now().After(end) {
			return wrong, nil
		}
	}
}

// settings prints what a guest has: its addresses, the routes of all tables, and name
// servers wherever one of the clients writes them. It is all of one call, since an
// emulated guest has better things to do.
const settings = `ip -o addr show dev eth0 | while read n dev family addr rest; do echo "addr $addr"; done
ip -4 route show table all dev eth0
ip -6 route show table all dev eth0
for f in /etc/resolv.conf /run/NetworkManager/resolv.conf /run/systemd/netif/links/*; do
	[ ! -f $f ] || sed "s|^|$f: |" $f
done`

var addrForm = regexp.MustCompile(`[0-9a-fA-F]*[:.][0-9a-fA-F:.]+`)

// leftovers returns the first of the guest's settings that is of the old network, and
// the addresses that it has.
func (s *Subject) leftovers(settings string) (wrong string, have []netip.Prefix) {
	old := map[string]string{"red": "blue", "blue": "red"}[s.at]
	for line := range strings.Lines(settings) {
		if addr, ok := strings.CutPrefix(line, "addr "); ok {
			if p, err := netip.ParsePrefix(strings.TrimSpace(addr)); err == nil {
				have = append(have, p)
			}
		}
		for _, word := range addrForm.FindAllString(line, -1) {
			a, err := netip.ParseAddr(word)
			of := func(n *pb.Subnet) bool { return netip.MustParsePrefix(n.Prefix).Contains(a) }
			if err == nil && wrong == "" && (a == s.routers[old] || slices.ContainsFunc(s.Family.network(old), of)) {
				wrong = "it has " + strings.TrimSpace(line)
			}
		}
	}
	return wrong, have
}

// hops prints what happened in a swap, and when.
func hops(swap *pb.Swap) string {
	var b strings.Builder
	for _, h := range swap.Timeline {
		fmt.Fprintf(&b, "%s +%d ms, ", h.Name, h.At.AsTime().Sub(swap.Started.AsTime()).Milliseconds())
	}
	return b.String()
}

// End switches the guest off.
func (s *Subject) End(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return s.stop(ctx)
}

func percentile(all []float64, p float64) float64 {
	if len(all) == 0 {
		return 0
	}
	all = slices.Clone(all)
	slices.Sort(all)
	at := int(math.Ceil(p/100*float64(len(all)))) - 1
	return math.Round(10*all[max(0, at)]) / 10
}

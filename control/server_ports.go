package control

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"replug/control/compute"
	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/store"
	"replug/directory/vnet"
)

type portsAPI struct {
	pb.UnimplementedPortsServer
	s *Server
}

// tapForm is what Linux takes as the name of a device (dev_valid_name).
var tapForm = regexp.MustCompile(`^[A-Za-z0-9_.@-]{1,15}$`)

// An attachment is a port whose VM is somebody else's.
type attachment struct {
	tenant, name, host, tap, monitor string
	mac                              vnet.MAC
	network                          vnet.Moniker
	cas                              []vnet.CA
	groups                           []string
	router                           bool
}

// AttachPort is for operators: who names a device or a socket of a host has its
// agent, which is root there, use it.
func (portsAPI) AttachPort(ctx context.Context, q *pb.AttachPortRequest) (*pb.Port, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	a, err := attachmentFrom(q)
	if err != nil {
		return nil, err
	}
	if a.tenant, err = c.owner(q.Tenant); err != nil {
		return nil, err
	}
	name, err := c.once(ctx, q, func(txn *store.Txn) (string, error) { return c.composeAttach(ctx, a, txn) })
	if err != nil {
		return nil, err
	}
	return c.portView(ctx, name)
}

func attachmentFrom(q *pb.AttachPortRequest) (attachment, error) {
	a := attachment{name: q.Name, host: q.Host, tap: q.Tap, monitor: q.Monitor}
	var err error
	if err = compute.CheckName("port", q.Name); err != nil {
		return a, err
	}
	if !tapForm.MatchString(q.Tap) || q.Tap == "." || q.Tap == ".." {
		return a, fmt.Errorf("%w tap %q: the name of a tap device on the host, 1 to 15 characters", ErrInvalid, q.Tap)
	}
	if strings.HasPrefix(q.Tap, vnet.TapPrefix) {
		return a, fmt.Errorf("%w tap %q: what begins with %s is the host agent's own; give the VM's tap another name", ErrInvalid, q.Tap, vnet.TapPrefix)
	}
	if q.Monitor != "" && !strings.HasPrefix(q.Monitor, "/") {
		return a, fmt.Errorf("%w monitor %q: an absolute path on the host, or nothing", ErrInvalid, q.Monitor)
	}
	if a.mac, err = vnet.ParseMAC(q.Mac); err != nil {
		return a, fmt.Errorf("%w MAC: %w", ErrInvalid, err)
	}
	if a.network, err = monikerFrom(q.Network); err != nil {
		return a, err
	}
	a.groups, a.router = q.Groups, q.Router
	a.cas, err = casFrom(q.Ip, q.Ips)
	return a, err
}

// attachedName is the name in the cluster of a port that a tenant calls name.
func attachedName(tenant, name string) string { return tenant + "." + name }

// composeAttach composes a port for somebody else's VM.
func (r *reign) composeAttach(ctx context.Context, a attachment, txn *store.Txn) (string, error) {
	if err := r.mayAllocate(); err != nil {
		return "", err
	}
	name := attachedName(a.tenant, a.name)
	if _, err := r.networks.GetPort(ctx, name); err == nil {
		return "", fmt.Errorf("port %q: %w: choose another name or detach it first", name, network.ErrExists)
	}
	host, err := store.Get[vnet.HostInfo](ctx, r.store, store.Hosts+a.host)
	if errors.Is(err, store.ErrNotFound) || strings.Contains(a.host, "/") {
		return "", fmt.Errorf("host %q: %w: list the hosts there are", a.host, ErrMissing)
	}
	if err != nil {
		return "", err
	}
	net, err := r.networks.Get(ctx, a.tenant, a.network)
	if err != nil {
		return "", err
	}
	if err := fits(&net.Value, 0, &host.Value); err != nil {
		return "", err
	}
	groups, slots, err := r.resolve(ctx, &net.Value, a.groups, txn)
	if err != nil {
		return "", err
	}
	in, made, err := r.networks.NewPort(ctx, network.PortRequest{
		Port:    network.Port{Name: name, Tenant: a.tenant, Attached: true, Router: a.router},
		Network: net, Families: net.Value.Families(), CAs: a.cas, Groups: groups, Slots: slots, MAC: a.mac, Tap: a.tap, Host: host.Value,
	})
	if err != nil {
		return "", err
	}
	in.Monitor, in.Current.Confirm = a.monitor, vnet.ConfirmLease
	txn.Exists(host.Key).Add(made, network.PutIntent(&in))
	return name, nil
}

// portView reads a port as callers see it.
func (r *reign) portView(ctx context.Context, name string) (*pb.Port, error) {
	row, err := r.networks.GetPort(ctx, name)
	if err != nil {
		return nil, err
	}
	in, err := r.networks.GetIntent(ctx, name)
	if err != nil {
		return nil, err
	}
	s, ok := r.board.get(name)
	if !ok { // the host has not said anything since this server leads
		stored, err := store.Get[vnet.Status](ctx, r.store, store.StatusKey(row.Value.Host, name))
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return nil, err
		}
		s = stored.Value
	}
	return portTo(&row.Value, &in.Value, s), nil
}

// allPorts reads all ports as callers see them, by name.
func (r *reign) allPorts(ctx context.Context) (map[string]*pb.Port, error) {
	rows, _, err := store.List[network.Port](ctx, r.store, store.Ports)
	if err != nil {
		return nil, err
	}
	intents, _, err := store.List[vnet.Intent](ctx, r.store, store.Intents)
	in := make(map[string]*vnet.Intent, len(intents))
	for i := range intents {
		in[intents[i].Value.Port] = &intents[i].Value
	}
	ports := make(map[string]*pb.Port, len(rows))
	for _, row := range rows {
		if of := in[row.Value.Name]; of != nil {
			s, _ := r.board.get(row.Value.Name)
			ports[row.Value.Name] = portTo(&row.Value, of, s)
		}
	}
	return ports, err
}

// findPort returns a port that the caller names: an attached one by its name, any
// by its name in the cluster, a VM's by the VM's.
func (c *caller) findPort(ctx context.Context, tenant, name string) (network.Port, error) {
	tenant, err := c.tenant(tenant)
	if err != nil {
		return network.Port{}, err
	}
	missing := fmt.Errorf("port %q of tenant %q: %w; list the ports there are", name, tenant, network.ErrNotFound)
	if name == "" || strings.Contains(name, "/") {
		return network.Port{}, missing
	}
	for _, n := range []string{attachedName(tenant, name), name} {
		row, err := c.networks.GetPort(ctx, n)
		if err == nil && (tenant == "" || row.Value.Tenant == tenant) {
			return row.Value, nil
		}
		if err != nil && !errors.Is(err, network.ErrNotFound) {
			return network.Port{}, err
		}
	}
	vm, err := c.vms.Find(ctx, tenant, name)
	if errors.Is(err, compute.ErrNotFound) {
		return network.Port{}, missing
	}
	if err != nil {
		return network.Port{}, err
	}
	row, err := c.networks.GetPort(ctx, vm.Value.Port)
	return row.Value, err
}

// memberNames returns what callers call the ports of VMs that have a name.
func (r *reign) memberNames(ctx context.Context) (map[string]string, error) {
	rows, _, err := r.vms.List(ctx, "")
	names := make(map[string]string, len(rows))
	for _, row := range rows {
		if row.Value.Name != "" {
			names[row.Value.Port] = row.Value.Name
		}
	}
	return names, err
}

func (portsAPI) GetPort(ctx context.Context, q *pb.GetPortRequest) (*pb.Port, error) {
	c := callerOf(ctx)
	p, err := c.findPort(ctx, q.Tenant, q.Name)
	if err != nil {
		return nil, err
	}
	return c.fullPort(ctx, p.Name)
}

// fullPort is portView with what a list of ports has not.
func (c *caller) fullPort(ctx context.Context, name string) (*pb.Port, error) {
	view, err := c.portView(ctx, name)
	if err != nil {
		return nil, err
	}
	view.Services, err = c.seatsOf(ctx, vnet.VNI(view.Vni), name)
	return view, err
}

func (portsAPI) ListPorts(ctx context.Context, q *pb.ListPortsRequest) (*pb.ListPortsResponse, error) {
	c := callerOf(ctx)
	tenant, err := c.tenant(q.Tenant)
	if err != nil {
		return nil, err
	}
	rows, _, err := store.List[network.Port](ctx, c.store, store.Ports)
	if err != nil {
		return nil, err
	}
	ports, err := c.allPorts(ctx)
	r := &pb.ListPortsResponse{}
	for _, row := range rows {
		if p := ports[row.Value.Name]; p != nil && (tenant == "" || p.Tenant == tenant) {
			r.Ports = append(r.Ports, p)
		}
	}
	return r, err
}

// DetachPort is for operators, as AttachPort: what the guest sends from then on is
// no more the datapath's, but the kernel's of the host.
func (portsAPI) DetachPort(ctx context.Context, q *pb.DetachPortRequest) (*pb.DetachPortResponse, error) {
	c := callerOf(ctx)
	if err := c.operator(); err != nil {
		return nil, err
	}
	done := func() {}
	_, err := c.once(ctx, q, func(txn *store.Txn) (string, error) {
		p, err := c.findPort(ctx, q.Tenant, q.Name)
		if err != nil {
			return "", err
		}
		if !p.Attached {
			return "", fmt.Errorf("port %q: %w: it is VM %s's; delete the VM", p.Name, ErrNotSo, p.VM)
		}
		done, err = c.composeEnd(ctx, p.Name, txn)
		return p.Name, err
	})
	if done != nil {
		done()
	}
	return &pb.DetachPortResponse{}, err
}

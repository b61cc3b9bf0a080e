package dataplane

import (
	"context"
	"net/netip"
	"time"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

// MaxCAs bounds the addresses of a port.
const MaxCAs = 4

// A Row is what the datapath holds of one port: all that a frame's way depends on.
type Row struct {
	Port     vnet.PortID
	Epoch    vnet.Epoch
	VNI      vnet.VNI
	MAC      vnet.MAC
	PA       vnet.PA
	CAs      [MaxCAs]netip.Prefix // an address with its subnet's length; unused ones are zero
	Gateway  netip.Addr           // IPv4; the IPv6 one follows from the VNI
	MTU      uint16
	Tenant   uint32 // a number for it: see tenantNumber
	Ifindex  int    // of the tap
	Isolated bool   // a pooled VM
	Timed    bool   // the datapath keeps [Times]
	Router   bool   // a gateway VM: sends from and gets for any address
	Logged   bool   // its flows are logged
	Draining bool   // begins no new flows: it is about to leave
	Strict   bool   // came by a swap: refuses TCP that began before
	Reset    bool   // ... and answers it with a reset
	Tap      bool   // as in [Device]
	Peer     bool   // as in [Device]
	// Rules come into force with the row. Nil, as they are when rows are read back:
	// those in force stay.
	Rules *Ruleset
}

// Times is what the datapath has seen of a timed port since its last flip.
type Times struct {
	Epoch    vnet.Epoch    // that the rest belongs to
	Seen     time.Time     // the guest's last frame from its current CA; zero: none in this epoch
	Blackout time.Duration // from the last frame before the flip to the first after; 0: not known yet
}

// A Datapath is what the agent needs of the BPF maps. Ports and networks call
// it at once from several goroutines; a port's calls come from one.
type Datapath interface {
	Rows() ([]Row, error)
	// SetPort puts a row in force between two frames, whatever leads to it with
	// it. It refuses an epoch lower than the one in force.
	SetPort(Row) error
	// DeletePort removes the row and all memory of the port: flows, counters, times.
	DeletePort(vnet.PortID) error
	// Attach hands the tap's frames to the datapath as the port's. Idempotent.
	Attach(vnet.PortID, int) error
	// Detach gives the tap back. A tap that is gone or was not attached is no error.
	Detach(vnet.PortID, int) error

	// StageRules takes room for the rules of the next epoch's row, and writes them
	// there; [open] or nil gives it back.
	StageRules(vnet.PortID, *Ruleset) error
	// ReleaseRules gives back the room of the rules of the last epoch's row, which is
	// kept for the way back, also by a datapath that is loaded anew.
	ReleaseRules(vnet.PortID)
	// SetRules replaces the rules of the row in force, all at once.
	SetRules(vnet.PortID, *Ruleset) error
	// Rejudge lets the rules in force judge the port's flows again.
	Rejudge(vnet.PortID) error
	// SetLimits bounds the rates of a port that has a row, from now on.
	SetLimits(vnet.PortID, vnet.Limits) error
	// Connections lists the open TCP connections that the port has in an epoch.
	Connections(vnet.PortID, vnet.Epoch) ([]Connection, error)
	// ServiceOf returns by which service the guest behind a tap speaks to a backend.
	ServiceOf(ifindex int, guest, backend netip.AddrPort) (netip.AddrPort, bool)
	// SetDraining lets the port begin no new flows, or lets it again.
	SetDraining(id vnet.PortID, on bool) error

	// SetTimed starts or stops the stopwatch of a port whose row is in force.
	SetTimed(id vnet.PortID, on bool) error
	Times(vnet.PortID) (Times, error)
	Tally(vnet.PortID) (Tally, error)
}

// A Directory is what the datapath knows of everybody else.
type Directory interface {
	// SetMappings writes all that it can.
	SetMappings([]MappingRow) NotSet
	DeleteMappings([]MappingKey) error // absent ones are no error
	EachMapping(func(MappingRow)) error
	Mapping(MappingKey) (MappingRow, bool, error)

	// PutHost believes frames from a registered host's prefix.
	PutHost(netip.Prefix) error
	DeleteHost(netip.Prefix) error // an absent one is no error
	Hosts() ([]netip.Prefix, error)
	// SetNextHop says how to reach what is behind a next hop, from now on and for
	// a minute. The zero NextHop lets the kernel find out.
	SetNextHop(index uint32, n NextHop) error

	// SetRoute puts a route of a network in force, or replaces that of its prefix.
	SetRoute(vnet.VNI, vnet.Route) error
	DeleteRoute(vnet.VNI, netip.Prefix) error // an absent one is no error
	EachRoute(func(vnet.VNI, vnet.Route)) error

	// SetMembers writes all that it can.
	SetMembers([]Member) NotSet
	EachMember(func(Member)) error
	// SetService puts a service in force, or changes the one at its address.
	SetService(vnet.Service) error
	DeleteService(ServiceKey) error // an absent one is no error
	Services() ([]ServiceKey, error)
	// ForgetBackends frees those of an earlier session that no service has named.
	ForgetBackends() error
}

// NotSet says which rows of a call the datapath has not taken, and why.
type NotSet map[MappingKey]error

// A Member is who has an address, and the groups it is in; none deletes it.
type Member struct {
	MappingKey
	Groups vnet.Groups
}

// A MappingKey names a mapping.
type MappingKey struct {
	VNI vnet.VNI
	CA  vnet.CA
}

// A MappingRow is a mapping with the way to its host; 0: not known.
type MappingRow struct {
	vnet.Mapping
	NextHop uint32
}

// A NextHop is a neighbour on the underlay.
type NextHop struct {
	Ifindex  int
	Src, Dst vnet.MAC
}

// Neighbours finds next hops. One that isn't known yet is asked for, and false.
type Neighbours interface {
	NextHop(ctx context.Context, dst netip.Addr) (NextHop, bool)
}

// A Device is what a guest is reached through.
type Device struct {
	Ifindex int
	Tap     bool // takes frames from XDP
	Peer    bool // a veth whose other end is in another network namespace: frames skip a queue
}

// Taps are the devices through which guests are reached.
type Taps interface {
	// Ensure makes the port's own tap, or adopts the one that is there.
	Ensure(id vnet.PortID, mtu int) (ifindex int, err error)
	// Find returns a device that somebody else made, unless no guest can be
	// behind it. One that is still the last that was found under the name is cheap
	// to find: every port asks, again and again.
	Find(name string, last Device) (Device, error)
	// Delete removes the port's own tap. An absent one is no error.
	Delete(id vnet.PortID) error
}

// Machines run VMs. Every call is idempotent.
type Machines interface {
	// Start boots the machine on the port's tap, unless it runs already. One that
	// was saved goes on where it was: resumed.
	Start(ctx context.Context, in vnet.Intent, mtu uint16) (resumed bool, err error)
	Save(ctx context.Context, m vnet.Machine) error   // off; to go on where it was
	Stop(ctx context.Context, m vnet.Machine) error   // off; disks stay
	Delete(ctx context.Context, m vnet.Machine) error // off, and its disks deleted
	Running(m vnet.Machine) bool
	Saved(m vnet.Machine) bool
	// Worked is the time that the machine has had of the host's CPUs, or has waited
	// for one; 0 when it is off.
	Worked(m vnet.Machine) time.Duration
}

// A Link is the guest's end of a port's cable.
type Link interface {
	Set(ctx context.Context, up bool) error
	// Plug takes the NIC out of the machine, or puts it in again. One that is
	// there, or gone, already is no error.
	Plug(ctx context.Context, in bool) error
	// Boots reports whether nobody has taken the NIC into use since the machine was
	// started or reset. One that can't tell is an error.
	Boots(ctx context.Context) (bool, error)
	Close() error
}

// Links opens the link of a port's VM. It fails when the monitor can't be reached.
// As long as the link is open, reset is called when the guest was reset: it boots.
type Links interface {
	Open(ctx context.Context, in vnet.Intent, reset func()) (Link, error)
}

// Documents is the metadata service, as far as a port drives it.
type Documents interface {
	Publish(vnet.PortID, vnet.Epoch, *vnet.Document, imds.Guest)
	// Renew sends a guest that waits for its document back to DHCP, or no longer.
	Renew(id vnet.PortID, on bool)
	// Polls reports whether a guest in the pool asks for its document already.
	Polls(id vnet.PortID) bool
	Withdraw(vnet.PortID)
	Forget(vnet.PortID)
}

// Agents are those in guests, as they are reached without their NICs.
type Agents interface {
	// Open keeps up the way to the agent of the port's machine, which runs. Idempotent.
	Open(vnet.PortID, vnet.Machine)
	// Listens reports whether an agent is there to be told.
	Listens(vnet.PortID) bool
	// Moved tells the agent that its network has changed; false: none listens.
	Moved(vnet.PortID, vnet.Moved) bool
}

// A Prober asks the guest behind a tap whether it has the place's first CAs; the
// answer comes back through the datapath.
type Prober interface {
	Probe(ifindex int, mac vnet.MAC, place *vnet.Place) error
}

// A Router tells the guest behind a tap about its IPv6 router, and the former ones.
type Router interface {
	Tell(ifindex int, frame []byte) error
}

// A Networks knows which networks are loaded, and keeps their routes.
type Networks interface {
	// Synced reports whether all mappings and services of a network are in the
	// datapath and its groups are known, or why they can't be.
	Synced(vnet.VNI) (bool, error)
	// Rules returns what a place's flows are judged by: the same pointer as long as
	// that is the same.
	Rules(*vnet.Place) (*Ruleset, error)
	// Way says how an address is reached from a place; false: it isn't known.
	Way(*vnet.Place, netip.Addr) (Way, bool)
	// Use says in which places a port is or is about to be; nil ones are ignored.
	Use(id vnet.PortID, places ...*vnet.Place) error
}

// rooms is everything that a port needs around it.
type rooms struct {
	datapath Datapath
	taps     Taps
	machines Machines
	links    Links
	docs     Documents
	agents   Agents
	prober   Prober
	resetter Resetter
	router   Router
	networks Networks
	records  recorder
	rungs    *rungs
	metrics  *Metrics
	accounts *accounts
	moved    func()            // a port's place in force has changed; never blocks; nil: nobody asks
	mtu      uint16            // that the underlay leaves to guests
	report   func(vnet.Status) // never blocks
	parting  time.Duration     // that a flip waits for resets; 0: resetTime
}

package vnet

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// A Mapping is a directory entry: where a CA of a network is reached.
type Mapping struct {
	VNI   VNI    `json:"vni"`
	CA    CA     `json:"ca"`
	PA    PA     `json:"pa"`
	MAC   MAC    `json:"mac"`
	Epoch Epoch  `json:"epoch"`
	Port  string `json:"port"` // "vtep:NAME": not a port of ours but a VTEP that the operator named
	Host  string `json:"host"` // "" for a VTEP
	// Groups are the security groups of the port, by their slots in the network.
	Groups Groups `json:"groups,omitempty"`
}

// An Addr is a CA with the subnet it is configured in and that subnet's gateway.
type Addr struct {
	CA      CA         `json:"ca"`
	Bits    int        `json:"bits"` // prefix length
	Gateway netip.Addr `json:"gateway"`
	// SLAAC lets the guest make the address itself from the prefix that the router
	// advertises. It can then be none but [MAC.EUI64], the only one that is known
	// beforehand: guests with privacy or stable-private addresses need DHCPv6.
	SLAAC bool `json:"slaac,omitempty"`
}

// Prefix returns the subnet of a.
func (a Addr) Prefix() netip.Prefix {
	p, _ := a.CA.Prefix(a.Bits)
	return p
}

// A Route sends a prefix to a next hop inside the network, or, without one, to the
// destination itself, which has a mapping of its own: it is in another subnet of the
// network, or in a peer network of the same tenant. The next hop may be a gateway VM or a VTEP: either is a CA with a mapping.
type Route struct {
	Prefix  netip.Prefix `json:"prefix"`
	NextHop netip.Addr   `json:"next_hop,omitzero"` // a CA; of the same family as Prefix
	Peer    VNI          `json:"peer,omitempty"`    // the peer network; 0: this one
}

// Confirm says what proves that a swap has succeeded.
type Confirm string

// The three proofs.
const (
	ConfirmLease  Confirm = "lease"  // the guest is seen on its new CA
	ConfirmGuest  Confirm = "guest"  // the guest agent reported final success for the epoch
	ConfirmCaller Confirm = "caller" // the caller of the API said so in time
)

// Trigger says how the guest is told that its network has changed.
type Trigger string

// The two ways.
const (
	TriggerBounce Trigger = "bounce" // link down and up, in growing length, then a DHCP exchange
	TriggerNone   Trigger = "none"   // the guest already has the new address; only traffic proves it
)

// A Hold is how a machine waits in its place.
type Hold string

// HoldSnapshot: once its guest has said that it waits, the machine rests as a state
// in its disks, and goes on from there when its next place is made ready. The zero
// Hold is warm: it runs.
const HoldSnapshot Hold = "snapshot"

// A Place is where a port is: its network, its addresses, and all that the host
// needs to answer for them without asking anybody. The DHCP answer is a pure
// function of the place and the port's MAC.
type Place struct {
	Epoch    Epoch     `json:"epoch"`
	Tenant   string    `json:"tenant"`
	Network  Moniker   `json:"network"`
	VNI      VNI       `json:"vni"`
	Addrs    []Addr    `json:"addrs"`
	Routes   []Route   `json:"routes,omitempty"`
	MTU      uint16    `json:"mtu,omitempty"`      // bytes, of the guest's IP packets; 0: what the host's underlay leaves
	Isolated bool      `json:"isolated,omitempty"` // reaches DHCP and IMDS only: a pooled VM
	DHCP     DHCP      `json:"dhcp"`
	Document *Document `json:"document,omitempty"` // what IMDS serves once published; nil: nothing
	Swap     string    `json:"swap,omitempty"`     // the swap that led here; "" for the first place
	Undo     bool      `json:"undo,omitempty"`     // the swap came back here
	Undoable bool      `json:"undoable,omitempty"` // the swap that led here has not ended, and may still go back
	Confirm  Confirm   `json:"confirm,omitempty"`
	Trigger  Trigger   `json:"trigger,omitempty"`
	// LeaseBudget is how long the guest has until it is seen here; 0: 25 s, as by default.
	LeaseBudget time.Duration `json:"lease_budget,omitempty"`
	Groups      []string      `json:"groups,omitempty"` // security groups of the network, by name
	Slots       Groups        `json:"slots,omitempty"`  // the same by their slots, for the mappings; control's own, not sent to hosts
	Router      bool          `json:"router,omitempty"` // a gateway VM: may send from and get for any address
	// OldConnections is what becomes of the connections that the port has in the
	// place it leaves for this one; "": reset.
	OldConnections OldConnections `json:"old_connections,omitempty"`
	Drain          time.Duration  `json:"drain,omitempty"` // at most, with [DrainConnections]
	FlowLog        bool           `json:"flow_log,omitempty"`
	Hold           Hold           `json:"hold,omitempty"`
}

// Has reports whether ca is one of the place's addresses.
func (p *Place) Has(ca CA) bool {
	for _, a := range p.Addrs {
		if a.CA == ca {
			return true
		}
	}
	return false
}

// VNIs returns the place's network and the peers that it has routes to, each once.
func (p *Place) VNIs() []VNI {
	all := []VNI{p.VNI}
	for _, r := range p.Routes {
		if r.Peer != 0 && !slices.Contains(all, r.Peer) {
			all = append(all, r.Peer)
		}
	}
	return all
}

// V4 returns the place's first IPv4 address, or false.
func (p *Place) V4() (Addr, bool) {
	for _, a := range p.Addrs {
		if a.CA.Is4() {
			return a, true
		}
	}
	return Addr{}, false
}

// V6 returns the place's first IPv6 address, or false.
func (p *Place) V6() (Addr, bool) {
	for _, a := range p.Addrs {
		if a.CA.Is6() {
			return a, true
		}
	}
	return Addr{}, false
}

// MaxServers is how many DNS servers of a family, and NTP servers, a guest is told of:
// clients use three at most.
const MaxServers = 4

// DHCP is what a lease says beside the address, mask, routes and MTU.
type DHCP struct {
	DNS    []netip.Addr  `json:"dns,omitempty"`
	Domain string        `json:"domain,omitempty"`
	NTP    []netip.Addr  `json:"ntp,omitempty"`
	Lease  time.Duration `json:"lease"` // at least 24 h by default, so an agent outage takes no address away
}

// A Document is what IMDS serves to a guest: the settings of its owner.
type Document struct {
	Epoch    Epoch    `json:"epoch"`
	Tag      string   `json:"tag,omitempty"` // [TagPartial], or absent: final
	Instance string   `json:"instance"`      // VM id
	Hostname string   `json:"hostname"`
	User     string   `json:"user,omitempty"`
	SSHKeys  []string `json:"ssh_keys,omitempty"`
	TimeZone string   `json:"time_zone,omitempty"`
	Files    []File   `json:"files,omitempty"`
	// PasswordHash is the user's, as crypt(5) has it; "": no password at all.
	PasswordHash string       `json:"password_hash,omitempty"`
	DNS          []netip.Addr `json:"dns,omitempty"` // name servers, before those of the lease
	RunOnce      []Command    `json:"run_once,omitempty"`
	Disks        []DataDisk   `json:"disks,omitempty"`
	// UserData is handed to cloud-init as it is: a script, cloud-config, or several in MIME.
	UserData []byte `json:"user_data,omitempty"`
	Woken    *Woken `json:"woken,omitempty"` // by the host, which alone knows it
}

// A Woken guest went on from a saved state: its clock stood still, the machine's did
// not, and it would draw the random numbers that it was about to.
type Woken struct {
	Seed []byte `json:"seed"` // random, for this guest alone
}

// TagPartial marks a document whose VM waits in the pool: not all is configured
// yet, report and go on polling.
const TagPartial = "partial"

// Partial reports whether the document is tagged partial.
func (d *Document) Partial() bool { return d.Tag == TagPartial }

// A Command is run by the guest agent as root, by a shell, at most once in the
// life of the machine: ID says whether it was.
type Command struct {
	ID      string `json:"id"`
	Command string `json:"command"`
}

// A DataDisk is one that the guest agent formats if nothing is on it, grows to the
// size that the disk has, and mounts.
type DataDisk struct {
	ID   string `json:"id"`             // its number, "1" is the first extra disk; or its serial number
	Path string `json:"path,omitempty"` // absolute; "": not mounted
}

// String names a place for logs: "blue 10.0.0.20 (0.7)".
func (p *Place) String() string {
	a, ok := p.V4()
	if !ok {
		a, ok = p.V6()
	}
	if ok {
		return fmt.Sprintf("%s %s (%s)", p.Network, a.CA, p.Epoch)
	}
	return fmt.Sprintf("%s (%s)", p.Network, p.Epoch)
}

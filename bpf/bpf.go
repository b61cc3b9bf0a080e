// Package bpf is the datapath: the BPF programs that carry frames between taps
// and the underlay, and the Go side of the contract in vnet.h. It loads, pins
// and attaches them, writes their maps and reads their counters.
//
// It knows ports, mappings and routes as values that somebody hands it. It does
// not make devices, talk to a directory or decide what an intent means.
//
// Two things to know before using it. A Datapath is in force from AttachUplink
// and AttachTap on and stays so after Close, because all is pinned: only
// [Remove] ends it. And a frame that is on its way may still use a row that has
// just been replaced; [Datapath.Settle] waits until none does.
package bpf

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

//go:generate go tool bpf2go -target bpfel -cc clang-19 -strip llvm-strip-19 -cflags "-O2 -g -Wall -Werror -mcpu=v3 -fno-strict-aliasing -I/usr/include/x86_64-linux-gnu" -type addr -type port -type times -type trap -type captured -type flow_event -type sweep -type next_hop_refresh -type port_flag -type trap_kind -type kind_shift -type rule_id -type flow_flag -type flow_seen -type flow_timeout -type way -type service_flag -type backend_flag -type rule_list -type rate -type flow_count -type capture_point -type flow_event_kind -type fragment_kind -type bucket datapath datapath.c
//go:generate go tool stringer -type datapathDropReason -trimprefix datapathDropReasonDROP_ -output drop_string.go

// Limits of one datapath, as vnet.h has them.
const (
	MaxPorts    = int(datapathLimitsMAX_PORTS)     // port ids are below it
	MaxCAs      = int(datapathLimitsMAX_CAS)       // of one port
	MaxNextHops = int(datapathLimitsMAX_NEXT_HOPS) // indexes are below it
)

// ErrShape says that the pinned maps were made by a newer release. Nothing was
// changed. Start that release again; or stop the ports of the host, call [Remove]
// and load again, which takes live state with it.
var ErrShape = errors.New("pinned maps have a newer shape")

// ErrOptions says that Options can't be loaded; the text says which one.
var ErrOptions = errors.New("invalid datapath option")

// Options are what a datapath needs to know before it is loaded.
type Options struct {
	PinDir      string       // below a bpffs; made with mode 0700 if missing
	Uplink      int          // ifindex
	IMDS        int          // ifindex of the device that leads to the metadata service
	UplinkMAC   [6]byte      // of Uplink: XDP takes only what is addressed to it
	IMDSMAC     [6]byte      // its address
	GatewayMAC  [6]byte      // what guests see as their gateway, and as each peer
	HostAddress netip.Addr   // the host's underlay address, IPv4 or IPv6: the family of the underlay
	PAPrefix    netip.Prefix // PAs of this host, at most 65,536; HostAddress alone if all ports share it
	UnderlayMTU int          // bytes of an outer IP packet

	// Capacities, 0: 65,536 each.
	Mappings uint32 // about 105 bytes of kernel memory each; of members of groups as many
	Flows    uint32 // of each family, 192 (IPv6: 216) bytes each
	Rules    uint32 // of all ports together, 64 bytes each

	TrapRate       int           // trapped frames a second and port, and the burst; 0: 100
	UnresolvedRate int           // frames a second and port from sources without a mapping, and the burst; 0: 1,000
	AnswerRate     int           // ARP, ND and pings a second and port that the gateway answers, and the burst; as many words about too big packets go over the wire; 0: 1,000
	DecapFlags     uint64        // see [DecapFlag]; 0: the kernel has none, merged frames go by its VXLAN device
	FlowQuota      uint32        // flows that a port may have unless told; 0: an eighth of Flows
	FlowIdle       time.Duration // see flow.h; 0: 10 ms, and never less than two ticks
	NextHopAge     time.Duration // after it a next hop isn't trusted; 0: 60 s
}

// A Datapath is a loaded datapath. Its methods may be called at once from
// several goroutines, but one process at a time owns a PinDir.
type Datapath struct {
	dir  string
	objs datapathObjects

	noTCX bool   // devices are hooked by filters of a clsact qdisc
	trace uint32 // the mark of a frame that is only looked at

	mu        sync.Mutex              // guards rows, and every read-modify-write of ports
	flips     uint64                  // counts them
	unsettled map[uint16]uint64       // port -> its last flip, if a frame may still use what that replaced
	rules     ruleSpace               // which pieces of the rules map are taken
	staged    map[uint16]stagedRules  // for rows to come
	held      map[uint16]datapathPort // rows that a higher epoch has replaced: their rules stand yet

	changes sync.Mutex // guards changed
	changed uint64     // how often anything that leads to a way has changed

	peers    peerTable
	services serviceTable
	tracing  sync.Mutex // one trace at a time
}

// Load loads the programs and makes the maps, or takes over those that are
// pinned under o.PinDir; nothing is attached yet. Maps of an older release, or of
// another capacity, are migrated: their rows are carried over and the programs
// are replaced wherever they are attached, without a lost frame (migrate.go). It
// returns [ErrShape], [ErrFull] or [ErrOptions], and otherwise what the kernel
// says, with the verifier's log. After an error what was in force still is.
func Load(o Options) (*Datapath, error) {
	spec, err := specOf(o)
	if err != nil {
		return nil, err
	}
	if err := makePinDir(o.PinDir); err != nil {
		return nil, err
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("lift the memory lock limit (needs CAP_SYS_RESOURCE): %w", err)
	}
	return load(spec, o.PinDir)
}

// specOf returns what is to be loaded.
func specOf(o Options) (*ebpf.CollectionSpec, error) {
	settings, err := o.settings()
	if err != nil {
		return nil, err
	}
	spec, err := loadDatapath()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[datapathVarConfig].Set(settings); err != nil {
		return nil, fmt.Errorf("set the datapath's config: %w", err)
	}
	spec.Maps[datapathMapMappings].MaxEntries = or(o.Mappings, 65536)
	spec.Maps[datapathMapMembers].MaxEntries = or(o.Mappings, 65536) // each may be in a group
	spec.Maps[datapathMapFlows].MaxEntries = or(o.Flows, 65536)
	spec.Maps[datapathMapFlows4].MaxEntries = or(o.Flows, 65536)
	spec.Maps[datapathMapRules].MaxEntries = or(o.Rules, 65536)
	return spec, nil
}

func load(spec *ebpf.CollectionSpec, dir string) (*Datapath, error) {
	if err := os.RemoveAll(draftDir(dir)); err != nil {
		return nil, fmt.Errorf("remove the draft of an agent that died: %w", err)
	}
	p, err := makePlan(spec, dir)
	if err != nil {
		return nil, err
	}
	defer p.close()
	d, err := loadBy(p, spec, dir)
	if err != nil {
		return nil, err
	}
	if err := d.readBack(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	// Whoever wrote the rows before us may have died between a flip and its grace period.
	if err := d.Settle(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// loadBy loads over the pinned maps, or migrates them.
func loadBy(p *plan, spec *ebpf.CollectionSpec, dir string) (*Datapath, error) {
	d := &Datapath{dir: dir, unsettled: map[uint16]uint64{}, staged: map[uint16]stagedRules{}}
	err := HaveTCX()
	if d.noTCX = errors.Is(err, ebpf.ErrNotSupported); err != nil && !d.noTCX {
		return nil, err
	}
	if p.needed() {
		return d, d.migrate(spec, p)
	}
	if err := d.fill(spec, mapDir(dir)); err != nil {
		return nil, err
	}
	if err := d.sign(); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// fill loads the programs with the maps that are pinned in pins; those that
// aren't are made.
func (d *Datapath) fill(spec *ebpf.CollectionSpec, pins string) error {
	err := spec.LoadAndAssign(&d.objs, &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: pins}})
	if err != nil {
		return fmt.Errorf("load the datapath: %w", err)
	}
	return d.readBack()
}

// readBack learns from the maps what an earlier process has put there, and from
// the programs what they were told.
func (d *Datapath) readBack() error {
	var s datapathSettings
	if err := d.objs.Config.Get(&s); err != nil {
		return fmt.Errorf("read the datapath's config: %w", err)
	}
	d.trace = s.TraceMark
	if err := d.objs.Directory.Lookup(uint32(0), &d.changed); err != nil {
		return fmt.Errorf("read how often the directory has changed: %w", err)
	}
	return errors.Join(d.directoryChanged(), d.readRules(), d.readPeers(prefix(datapathAddr(s.PaNet), uint32(datapathAddr(s.PaMask).ones()))), d.readServices())
}

// sign signs maps that have just been made.
func (d *Datapath) sign() error {
	var have datapathLimits
	if err := d.objs.Contract.Lookup(uint32(0), &have); err != nil {
		return fmt.Errorf("read the contract of the maps: %w", err)
	}
	if have != 0 {
		return nil
	}
	if err := d.objs.Contract.Put(uint32(0), datapathLimitsCONTRACT); err != nil {
		return fmt.Errorf("write the contract: %w", err)
	}
	return nil
}

// Close lets go of the datapath. What is pinned stays in force.
func (d *Datapath) Close() error { return d.objs.Close() }

// Settle waits until no frame is handled by what the maps said before the call:
// an RCU grace period, 8 to 16 ms measured. Keep it off the path that a guest
// waits for.
func (d *Datapath) Settle() error {
	d.mu.Lock()
	waited := maps.Clone(d.unsettled)
	d.mu.Unlock()
	if err := gracePeriod(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	var errs []error
	for id, flip := range waited {
		if d.unsettled[id] == flip { // else it was flipped again meanwhile
			delete(d.unsettled, id)
			errs = append(errs, d.keepReplaced(id))
		}
	}
	return errors.Join(errs...)
}

// gracePeriod waits as synchronize_rcu does, which the kernel does for this
// command (kernel/sched/membarrier.c).
func gracePeriod() error {
	const membarrierGlobal = 1
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, membarrierGlobal, 0, 0); errno != 0 {
		return fmt.Errorf("wait for frames on their way (membarrier): %w", errno)
	}
	return nil
}

// Remove takes the datapath of dir out of force: programs are detached, maps and
// all they hold are freed. It is no error if there is none.
func Remove(dir string) error {
	all, err := filters(dir)
	if err != nil {
		return err
	}
	for _, f := range all {
		if err := f.detach(); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the pinned datapath: %w", err)
	}
	return nil
}

func mapDir(dir string) string  { return filepath.Join(dir, "maps") }
func linkDir(dir string) string { return filepath.Join(dir, "links") }

func makePinDir(dir string) error {
	for _, d := range []string{dir, mapDir(dir), linkDir(dir)} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make the pin directory: %w", err)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return fmt.Errorf("close the pin directory to others: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if fs.Type != unix.BPF_FS_MAGIC {
		return fmt.Errorf("%w: PinDir %s is not on a bpffs (mount -t bpf bpf <dir>)", ErrOptions, dir)
	}
	return nil
}

func (o Options) settings() (datapathSettings, error) {
	s := datapathSettings{
		FlowIdle:    max(ticks(or(o.FlowIdle, 10*time.Millisecond)), 2),
		NextHopAge:  ticks(or(o.NextHopAge, time.Minute)),
		Second:      ticks(time.Second),
		Uplink:      uint32(o.Uplink),
		Imds:        uint32(o.IMDS),
		UnderlayMtu: uint32(o.UnderlayMTU),
		FlowQuota:   or(o.FlowQuota, max(or(o.Flows, 65536)/8, 1)),
		TraceMark:   rand.Uint32() | 1, // nothing that a guest or the fabric could set
		GatewayMac:  o.GatewayMAC,
		ImdsMac:     o.IMDSMAC,
		UplinkMac:   o.UplinkMAC,
		DecapFlags:  o.DecapFlags,
		Host:        as16(o.HostAddress),
	}
	s.TrapInterval, s.TrapBurst = bucket(or(o.TrapRate, 100))
	s.UnresolvedInterval, s.UnresolvedBurst = bucket(or(o.UnresolvedRate, 1000))
	s.AnswerInterval, s.AnswerBurst = bucket(or(o.AnswerRate, 1000))
	overhead := OverheadIPv4
	if o.HostAddress.Is6() {
		s.Underlay6, overhead = 1, OverheadIPv6
	}
	switch {
	case o.Uplink <= 0:
		return s, fmt.Errorf("%w: Uplink %d", ErrOptions, o.Uplink)
	case !o.HostAddress.IsValid():
		return s, fmt.Errorf("%w: no HostAddress", ErrOptions)
	case !o.PAPrefix.IsValid() || o.PAPrefix.Addr().Is4() != o.HostAddress.Is4():
		return s, fmt.Errorf("%w: PAPrefix %s is not of the family of HostAddress %s", ErrOptions, o.PAPrefix, o.HostAddress)
	case o.PAPrefix.Addr().BitLen()-o.PAPrefix.Bits() > 16:
		return s, fmt.Errorf("%w: PAPrefix %s has more than 65,536 addresses, which is what a mapping can tell apart", ErrOptions, o.PAPrefix)
	case o.UnderlayMTU < 576+overhead:
		return s, fmt.Errorf("%w: UnderlayMTU %d leaves a guest less than 576 bytes", ErrOptions, o.UnderlayMTU)
	case o.GatewayMAC == [6]byte{}:
		return s, fmt.Errorf("%w: no GatewayMAC", ErrOptions)
	}
	s.PaNet, s.PaMask = as16(o.PAPrefix.Masked().Addr()), mask16(o.PAPrefix)
	return s, nil
}

// What VXLAN adds to a guest's IP packet, bytes.
const (
	OverheadIPv4 = 50 // outer IPv4, UDP, VXLAN, inner Ethernet
	OverheadIPv6 = 70
)

// bucket returns the interval between frames and how far they may run ahead, ns.
func bucket(rate int) (interval, burst uint64) {
	return uint64(time.Second) / uint64(rate), uint64(time.Second)
}

// ticks returns how many ticks of the kernel last at least d. The coarse clocks
// advance once a tick, so that their resolution is its length.
func ticks(d time.Duration) uint64 {
	tick := 10 * time.Millisecond // the slowest that Linux has
	var ts unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &ts); err == nil {
		tick = time.Duration(ts.Nano())
	}
	return uint64((d + tick - 1) / tick)
}

func or[T comparable](v, otherwise T) T {
	var zero T
	if v == zero {
		return otherwise
	}
	return v
}

package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"slices"
	"sync"
)

// ErrService says that a service can't be held by the datapath.
var ErrService = errors.New("not a service that the datapath can hold")

// A ServiceKey is the address that clients of a service use.
type ServiceKey struct {
	VNI      uint32
	VIP      netip.Addr
	Port     uint16
	Protocol uint8 // TCP, UDP or SCTP
}

// A Service leads from its address to backends of the same network. Flows stay
// with their backend; new ones are spread by weighted rendezvous hashing, so that
// when a backend goes only its own share of new flows changes hands.
type Service struct {
	ServiceKey
	Affinity bool // a client's flows go to one backend, whatever their ports
	Backends []Backend
}

// A Backend is a VM behind a service.
type Backend struct {
	CA       netip.Addr
	Port     uint16
	Weight   uint16 // 0: as if Draining
	Draining bool   // keeps its flows, gets no new ones
	Dead     bool   // its flows are reset, none is sent there
}

// Above a backend's flags stands its network: a restarted agent asks for it.
const vniShift = 8

// Slots a backend, at the least: the share of each is right to some 10%.
const slotsPerBackend = 100

// A serviceTable knows where each service's table stands and which backend has
// which number.
type serviceTable struct {
	mu    sync.Mutex
	rows  map[ServiceKey]serviceRow
	slots ruleSpace // the same first fit, over service_slots
	used  map[uint32]bool
	next  uint32
	flips uint64
	// lone are the numbers that an earlier process gave to backends that are in no
	// table (drained, dead), until their services are named again: flows still have them.
	lone map[owned][]uint32
}

type serviceRow struct {
	table    datapathRuleList
	backends map[backendKey]uint32
}

type backendKey struct {
	ca   netip.Addr
	port uint16
}

// owned is a backend and its network; 0: the row is of a release that didn't write it.
type owned struct {
	vni uint32
	backendKey
}

// SetService puts a service in force, or replaces it in one step. It returns
// [ErrService] or [ErrFull], and then what was in force stays.
func (d *Datapath) SetService(s Service) error {
	if err := s.check(); err != nil {
		return fmt.Errorf("service %s:%d in %d: %w", s.VIP, s.Port, s.VNI, err)
	}
	t := &d.services
	t.mu.Lock()
	defer t.mu.Unlock()
	old := t.rows[s.ServiceKey]
	row, err := d.placeService(s, old)
	if err != nil {
		return errors.Join(fmt.Errorf("service %s:%d in %d: %w", s.VIP, s.Port, s.VNI, err), d.retireService(s.VNI, row, old))
	}
	t.rows[s.ServiceKey] = row
	t.named(s.VNI, row)
	return d.retireService(s.VNI, old, row)
}

// DeleteService takes a service out of force: its flows are reset as they go on.
// One that isn't there is no error.
func (d *Datapath) DeleteService(k ServiceKey) error {
	t := &d.services
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := ignoreMissing(d.objs.Services.Delete(k.key())); err != nil {
		return fmt.Errorf("delete service %s:%d in %d: %w", k.VIP, k.Port, k.VNI, err)
	}
	old := t.rows[k]
	delete(t.rows, k)
	return d.retireService(k.VNI, old, serviceRow{})
}

// Services lists the services in force.
func (d *Datapath) Services() []ServiceKey {
	d.services.mu.Lock()
	defer d.services.mu.Unlock()
	var all []ServiceKey
	for k := range d.services.rows {
		all = append(all, k)
	}
	return all
}

func (s Service) check() error {
	const sctp = 132
	switch {
	case !s.VIP.IsValid() || s.Port == 0:
		return fmt.Errorf("%w: no address or port", ErrService)
	case s.Protocol != 6 && s.Protocol != 17 && s.Protocol != sctp:
		return fmt.Errorf("%w: protocol %d has no ports", ErrService, s.Protocol)
	}
	seen := map[backendKey]bool{}
	for _, b := range s.Backends {
		k := backendKey{b.CA, b.Port}
		switch {
		case b.CA.Is4() != s.VIP.Is4() || b.Port == 0:
			return fmt.Errorf("%w: backend %s:%d", ErrService, b.CA, b.Port)
		case s.Protocol == sctp && b.Port != s.Port:
			return fmt.Errorf("%w: backend %s listens on %d: SCTP's checksum covers the port, so it can't change", ErrService, b.CA, b.Port)
		case seen[k]:
			return fmt.Errorf("%w: backend %s:%d comes twice", ErrService, b.CA, b.Port)
		}
		seen[k] = true
	}
	return nil
}

// placeService writes backends, then a table where none points, then the row
// that points there.
func (d *Datapath) placeService(s Service, old serviceRow) (serviceRow, error) {
	row := serviceRow{backends: map[backendKey]uint32{}}
	for _, b := range s.Backends {
		k := backendKey{b.CA, b.Port}
		index, known := old.backends[k]
		if !known {
			var err error
			if index, err = d.services.number(owned{s.VNI, k}); err != nil {
				return row, err
			}
		}
		row.backends[k] = index
		v := datapathBackend{Ca: as16(b.CA), Port: swap16(b.Port), Flags: datapathBackendFlagBACKEND_USED | datapathBackendFlag(s.VNI)<<vniShift}
		if b.Dead {
			v.Flags |= datapathBackendFlagBACKEND_DEAD
		}
		if err := d.objs.Backends.Put(index, v); err != nil {
			return row, fmt.Errorf("write backend %s: %w", b.CA, err)
		}
	}
	slots := s.table(row.backends)
	list, err := d.services.takeTable(uint32(len(slots)))
	if err != nil {
		return row, err
	}
	row.table = list
	keys := make([]uint32, len(slots))
	for i := range keys {
		keys[i] = list.Base + uint32(i)
	}
	if _, err := d.objs.ServiceSlots.BatchUpdate(keys, slots, nil); err != nil {
		return row, fmt.Errorf("write its table: %w", err)
	}
	v := datapathService{Base: list.Base, Mask: uint32(len(slots) - 1)}
	if s.Affinity {
		v.Flags = datapathServiceFlagSERVICE_AFFINITY
	}
	if err := d.objs.Services.Put(s.key(), v); err != nil {
		return row, fmt.Errorf("write its row: %w", full(err))
	}
	return row, nil
}

// table fills the slots: each goes to the backend with the highest score for it
// (Thaler and Ravishankar, "Using name-based mappings to increase hit rates",
// 1998; with weights as Schindelhauer and Schomaker, 2005). A slot of 0 leads nowhere.
func (s Service) table(numbers map[backendKey]uint32) []uint32 {
	var live []Backend
	for _, b := range s.Backends {
		if b.Weight > 0 && !b.Draining && !b.Dead {
			live = append(live, b)
		}
	}
	slots := make([]uint32, slotCount(len(s.Backends)))
	if len(live) == 0 {
		return slots
	}
	seeds := make([]uint64, len(live))
	for i, b := range live {
		seeds[i] = b.seed()
	}
	for i := range slots {
		best, highest := 0, math.Inf(-1)
		for j, b := range live {
			if score := score(seeds[j], uint64(i), b.Weight); score > highest {
				best, highest = j, score
			}
		}
		slots[i] = numbers[backendKey{live[best].CA, live[best].Port}]
	}
	return slots
}

// slotCount is a power of 2 that changes seldom, since most new flows then go
// elsewhere: with the 11th backend, the 41st and the 164th.
func slotCount(backends int) int {
	for _, n := range []int{1 << 10, 1 << 12, 1 << 14} {
		if backends*slotsPerBackend <= n {
			return n
		}
	}
	return 1 << max(15, bits.Len(uint(backends*slotsPerBackend-1)))
}

// seed is the same on every host: a flow that comes in by two of them is spread alike.
func (b Backend) seed() uint64 {
	a := b.CA.As16()
	return mix64(binary.BigEndian.Uint64(a[:8]) ^ mix64(binary.BigEndian.Uint64(a[8:])^uint64(b.Port)<<48))
}

func score(seed, slot uint64, weight uint16) float64 {
	u := (float64(mix64(seed^mix64(slot+0x9e3779b97f4a7c15))>>11) + 1) / (1 << 53)
	return float64(weight) / -math.Log(u)
}

// mix64 is the finalizer of SplitMix64.
func mix64(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// number finds an index of backends for k that nobody uses, or that k has had.
func (t *serviceTable) number(k owned) (uint32, error) {
	const most = 65536
	if _, had := t.left(k); len(had) > 0 {
		return had[0], nil // [serviceTable.named] takes it
	}
	for range most {
		t.next = t.next%(most-1) + 1
		if !t.used[t.next] {
			t.used[t.next] = true
			return t.next, nil
		}
	}
	return 0, fmt.Errorf("%d backends: %w", most-1, ErrFull)
}

// left are the numbers that an earlier process gave to a backend, and under which key.
func (t *serviceTable) left(k owned) (owned, []uint32) {
	if len(t.lone[k]) == 0 {
		k.vni = 0
	}
	return k, t.lone[k]
}

// named says that a service that is in force has its numbers.
func (t *serviceTable) named(vni uint32, row serviceRow) {
	for b, index := range row.backends {
		if k, had := t.left(owned{vni, b}); len(had) > 0 && had[0] == index {
			t.lone[k] = had[1:]
		}
	}
}

func (t *serviceTable) takeTable(n uint32) (datapathRuleList, error) {
	list, err := t.slots.take(n)
	if errors.Is(err, ErrFull) && len(t.slots.left) > 0 {
		if err := gracePeriod(); err != nil {
			return list, err
		}
		t.slots.settleAll(t.flips)
		list, err = t.slots.take(n)
	}
	return list, err
}

// retireService gives back what the old row had and the new one has not. A row that
// could not come into force is older than the one that stays.
func (d *Datapath) retireService(vni uint32, old, row serviceRow) error {
	t := &d.services
	t.flips++
	t.slots.release(0, t.flips, old.table)
	var errs []error
	for k, index := range old.backends {
		_, kept := row.backends[k]
		if _, left := t.left(owned{vni, k}); !kept && !slices.Contains(left, index) {
			errs = append(errs, d.objs.Backends.Put(index, datapathBackend{}))
			delete(t.used, index)
		}
	}
	return errors.Join(errs...)
}

// ForgetBackends gives the numbers back that backends of an earlier process had and
// no service has named since: whoever still has a flow to one is reset.
func (d *Datapath) ForgetBackends() error {
	t := &d.services
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, numbers := range t.lone {
		for _, n := range numbers {
			errs = append(errs, d.objs.Backends.Put(n, datapathBackend{}))
			delete(t.used, n)
		}
	}
	t.lone = nil
	return errors.Join(errs...)
}

// readServices learns what an earlier process has put in force. Their backends
// are known again when the directory names the services.
func (d *Datapath) readServices() error {
	t := &d.services
	*t = serviceTable{rows: map[ServiceKey]serviceRow{}, used: map[uint32]bool{}, slots: ruleSpace{size: d.objs.ServiceSlots.MaxEntries()}, lone: map[owned][]uint32{}}
	numbers := map[uint32]owned{}
	err := each(d.objs.Backends, func(i uint32, b datapathBackend) error {
		if b.Flags != 0 {
			numbers[i] = owned{uint32(b.Flags >> vniShift), backendKey{b.Ca.ip(), swap16(b.Port)}}
			t.used[i] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	tabled := map[uint32]bool{}
	err = each(d.objs.Services, func(k datapathServiceKey, s datapathService) error {
		row := serviceRow{table: datapathRuleList{Base: s.Base, Count: s.Mask + 1}, backends: map[backendKey]uint32{}}
		t.slots.occupy(row.table)
		for i := range row.table.Count {
			var n uint32
			if err := d.objs.ServiceSlots.Lookup(s.Base+i, &n); err != nil {
				return fmt.Errorf("read the table of a service: %w", err)
			}
			if b, ok := numbers[n]; ok {
				row.backends[b.backendKey], tabled[n] = n, true
			}
		}
		t.rows[k.service()] = row
		return nil
	})
	for n, k := range numbers {
		if !tabled[n] {
			t.lone[k] = append(t.lone[k], n)
		}
	}
	return err
}

func (k ServiceKey) key() datapathServiceKey {
	return datapathServiceKey{Vip: as16(k.VIP), Vni: k.VNI, Port: swap16(k.Port), Proto: k.Protocol}
}

func (k datapathServiceKey) service() ServiceKey {
	return ServiceKey{VNI: k.Vni, VIP: k.Vip.ip(), Port: swap16(k.Port), Protocol: k.Proto}
}

// swap16 turns a port number into a __be16 on a little-endian machine, and back.
func swap16(p uint16) uint16 { return bits.ReverseBytes16(p) }

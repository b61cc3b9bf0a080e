// Package compute is the compute manager: VM types, VMs and their life, and on
// which host each of them runs. It never calls a host: it composes rows, and takes
// in what hosts report.
//
// A VM's partial success (it waits in the pool) and its final success are told
// apart by the kind of the guest's report, never by its place in time
// (invariant 11).
package compute

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"replug/directory/store"
	"replug/directory/vnet"
)

// Errors of this package.
var (
	ErrInvalid   = errors.New("invalid")
	ErrNotFound  = errors.New("not found")
	ErrExists    = errors.New("exists already")
	ErrInUse     = errors.New("in use")
	ErrNotSo     = errors.New("not possible now")
	ErrExhausted = errors.New("none left")
)

// Phase is where a VM is in its life.
type Phase string

// The phases. A VM that was claimed never returns to Pooled.
const (
	Creating Phase = "creating" // booting, or waiting for the guest's report
	Pooled   Phase = "pooled"   // partial success: waits to be claimed
	Claimed  Phase = "claimed"  // becomes a tenant's
	Ready    Phase = "ready"    // final success
	Stopped  Phase = "stopped"
	Failed   Phase = "failed"
	Deleting Phase = "deleting" // until its host says that it is gone
)

// A Hop is a step of a VM's or a claim's life and the time it ended.
type Hop struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	By   string    `json:"by"` // server or host
}

// A VM is a row. What its host needs is in the intent of its port.
type VM struct {
	ID     string `json:"id"` // "vm-17"
	Name   string `json:"name,omitempty"`
	Tenant string `json:"tenant"`
	Type   string `json:"type"`
	CPUs   int    `json:"cpus"`
	Memory int    `json:"memory"` // MiB
	Image  string `json:"image"`
	// Personality is that of the image on the host when the VM was made.
	Personality vnet.Personality  `json:"personality,omitempty"`
	Hold        vnet.Hold         `json:"hold,omitempty"` // how it waits, or waited, in the pool
	UUID        string            `json:"uuid"`
	Host        string            `json:"host"`
	Port        string            `json:"port"`
	Pool        bool              `json:"pool,omitempty"` // was made for the pool
	Claim       string            `json:"claim,omitempty"`
	Phase       Phase             `json:"phase"`
	Power       vnet.Power        `json:"power"`
	Error       string            `json:"error,omitempty"`
	Settings    vnet.Document     `json:"settings"`        // the owner's part of it
	Guest       *vnet.GuestReport `json:"guest,omitempty"` // the last one
	Timeline    []Hop             `json:"timeline,omitempty"`
	Created     time.Time         `json:"created"`
	Ready       time.Time         `json:"ready,omitzero"` // final success, or pooled: partial success
}

// A Manager reads and composes changes of types and VMs.
type Manager struct {
	Store *store.Store
	Now   func() time.Time
	ids   *store.Counter
}

// New makes a manager of the leader's store, in the cluster's era.
func New(s *store.Store, era uint16) *Manager {
	return &Manager{Store: s, Now: time.Now, ids: store.NewCounter(s, "vm", era)}
}

// Key is where a VM is stored.
func Key(id string) string { return store.VMs + id }

// NameKey is where it stands which VM has a tenant's name.
func NameKey(tenant, name string) string { return store.Names + tenant + "/" + name }

// PortName is the name of a VM's port.
func PortName(id string) string { return id + ".0" }

// Get reads a VM by its id.
func (m *Manager) Get(ctx context.Context, id string) (store.Row[VM], error) {
	row, err := store.Get[VM](ctx, m.Store, Key(id))
	if errors.Is(err, store.ErrNotFound) {
		return row, fmt.Errorf("VM %q: %w", id, ErrNotFound)
	}
	return row, err
}

// Find reads a VM by its name in a tenant, or by its id. With a tenant, only a VM
// of that tenant is found.
func (m *Manager) Find(ctx context.Context, tenant, name string) (store.Row[VM], error) {
	missing := fmt.Errorf("VM %q: %w in tenant %q; list the VMs there are", name, ErrNotFound, tenant)
	if strings.ContainsAny(name, "/\x00") || name == "" {
		return store.Row[VM]{}, missing
	}
	if tenant != "" {
		id, err := store.Get[string](ctx, m.Store, NameKey(tenant, name))
		if err == nil {
			return m.Get(ctx, id.Value)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return store.Row[VM]{}, err
		}
	}
	row, err := m.Get(ctx, name)
	if errors.Is(err, ErrNotFound) || err == nil && tenant != "" && row.Value.Tenant != tenant {
		return store.Row[VM]{}, missing
	}
	return row, err
}

// List returns a tenant's VMs, or all for tenant "", and the revision read.
func (m *Manager) List(ctx context.Context, tenant string) ([]store.Row[VM], int64, error) {
	rows, rev, err := store.List[VM](ctx, m.Store, store.VMs)
	if tenant == "" || err != nil {
		return rows, rev, err
	}
	var own []store.Row[VM]
	for _, r := range rows {
		if r.Value.Tenant == tenant {
			own = append(own, r)
		}
	}
	return own, rev, nil
}

// Create completes a VM of type t on a host and composes its rows: id, UUID and,
// when it has one, its name. The name must be free.
func (m *Manager) Create(ctx context.Context, vm VM, t Type) (VM, *store.Txn, error) {
	n, err := m.ids.Next(ctx)
	if err != nil {
		return vm, nil, err
	}
	vm.ID = fmt.Sprintf("vm-%d", n)
	vm.Port, vm.UUID = PortName(vm.ID), newUUID()
	if vm.Settings.Hostname == "" {
		vm.Settings.Hostname = cmp.Or(vm.Name, vm.ID)
	}
	vm.Type, vm.CPUs, vm.Memory, vm.Image = t.Name, t.CPUs, t.Memory, t.Image
	vm.Phase, vm.Power, vm.Created = Creating, vnet.PowerOn, m.Now()
	vm.Step("accepted", vm.Created)
	txn := (&store.Txn{}).Exists(TypeKey(t.Name)).Absent(Key(vm.ID)).Put(Key(vm.ID), vm)
	return vm, txn, nil
}

// TakeName composes that vm has its name in its tenant.
func (m *Manager) TakeName(ctx context.Context, vm *VM) (*store.Txn, error) {
	if err := CheckName("VM", vm.Name); err != nil {
		return nil, err
	}
	key := NameKey(vm.Tenant, vm.Name)
	row, err := store.Get[string](ctx, m.Store, key)
	if err == nil {
		return nil, fmt.Errorf("VM name %q of tenant %q: %w (%s): choose another one or delete it first", vm.Name, vm.Tenant, ErrExists, row.Value)
	}
	if !errors.Is(err, store.ErrNotFound) {
		return nil, err
	}
	return (&store.Txn{}).Absent(key).Put(key, vm.ID), nil
}

// Put composes the writing of vm, which must not have changed since row was read.
func Put(row store.Row[VM], vm VM) *store.Txn {
	return (&store.Txn{}).Unchanged(row.Key, row.Revision).Put(row.Key, vm)
}

// Remove composes that a VM is no more; its name is given back if it still has it.
func (m *Manager) Remove(ctx context.Context, row store.Row[VM]) (*store.Txn, error) {
	vm := row.Value
	t := (&store.Txn{}).Unchanged(row.Key, row.Revision).Delete(row.Key)
	if vm.Name == "" {
		return t, nil
	}
	key := NameKey(vm.Tenant, vm.Name)
	name, err := store.Get[string](ctx, m.Store, key)
	if errors.Is(err, store.ErrNotFound) {
		return t, nil
	}
	if err == nil && name.Value == vm.ID {
		t.Unchanged(key, name.Revision).Delete(key)
	}
	return t, err
}

// maxTimeline is how many steps of its life a VM remembers.
const maxTimeline = 64

// Step adds a step of the server's to the VM's timeline; the oldest are forgotten.
func (vm *VM) Step(name string, at time.Time) {
	vm.Timeline = append(slices.Clone(vm.Timeline), Hop{Name: name, At: at, By: "server"})
	if n := len(vm.Timeline); n > maxTimeline {
		vm.Timeline = vm.Timeline[n-maxTimeline:]
	}
}

// Machine returns what the host is to run.
func (vm *VM) Machine(disks []vnet.Disk) *vnet.Machine {
	return &vnet.Machine{ID: vm.ID, UUID: vm.UUID, CPUs: vm.CPUs, Memory: vm.Memory, Image: vm.Image, Disks: disks, Power: vm.Power,
		Personality: vm.Personality}
}

// Rests reports whether the VM waits on disk and uses no memory.
func (vm *VM) Rests() bool { return vm.Phase == Pooled && vm.Hold == vnet.HoldSnapshot }

// Confirm returns what can prove that the guest of the VM has followed a swap. An
// agent says so each time; cloud-init once, when it leaves the pool; others never.
func (vm *VM) Confirm(claimed bool) vnet.Confirm {
	if vm.Personality.Agent() || claimed && vm.Personality.CloudInit() {
		return vnet.ConfirmGuest
	}
	return vnet.ConfirmLease
}

// Document returns what the guest is to be told: partial for a VM that is made for
// the pool, else its owner's settings.
func (vm *VM) Document(partial bool) *vnet.Document {
	d := vm.Settings
	d.Instance, d.Tag, d.Epoch = vm.ID, "", 0
	if partial {
		d.Tag = vnet.TagPartial
	}
	return &d
}

// newUUID makes a random UUID (RFC 9562, version 4).
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand, Go 1.24)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

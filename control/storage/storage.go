// Package storage is the storage manager: the disks of VMs as rows. The bytes are
// on the hosts; what is kept here is what each disk is and whose. A disk changes
// its owner by metadata alone (S51, S55): nothing is copied.
package storage

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"replug/directory/store"
	"replug/directory/vnet"
)

// ErrInvalid says that a disk can't be so.
var ErrInvalid = errors.New("invalid")

// Bounds of a VM's disks.
const (
	MaxData     = 8       // data disks of a VM
	MinDataSize = 1 << 20 // bytes
	MaxDataSize = 16 << 40
)

// A Disk is a row: an overlay of an image (OS disk), or an empty disk.
type Disk struct {
	ID     string `json:"id"` // VM id and a number: "vm-17-0" is the OS disk
	Size   int64  `json:"size"`
	OS     bool   `json:"os,omitempty"`
	Tenant string `json:"tenant"`
	VM     string `json:"vm"`
}

// A Manager reads and composes changes of disks.
type Manager struct{ Store *store.Store }

func key(vm, id string) string { return store.Disks + vm + "/" + id }

// Create composes the disks of a new VM: one with the OS, osSize bytes (0: the
// image's), and one of each size in data.
func (m *Manager) Create(vm, tenant string, osSize int64, data []int64) ([]Disk, *store.Txn, error) {
	disks := []Disk{{ID: vm + "-0", Size: osSize, OS: true, Tenant: tenant, VM: vm}}
	more, t, err := m.extend(vm, tenant, 1, data)
	if err != nil {
		return nil, nil, err
	}
	return append(disks, more...), t.Put(key(vm, disks[0].ID), disks[0]), nil
}

func (m *Manager) extend(vm, tenant string, first int, data []int64) ([]Disk, *store.Txn, error) {
	t := &store.Txn{}
	if len(data) > MaxData {
		return nil, nil, fmt.Errorf("%w: %d data disks; at most %d are allowed", ErrInvalid, len(data), MaxData)
	}
	var disks []Disk
	for i, size := range data {
		if size < MinDataSize || size > MaxDataSize {
			return nil, nil, fmt.Errorf("%w data disk of %d bytes: must be %d to %d", ErrInvalid, size, MinDataSize, int64(MaxDataSize))
		}
		d := Disk{ID: vm + "-" + strconv.Itoa(first+i), Size: size, Tenant: tenant, VM: vm}
		disks = append(disks, d)
		t.Absent(key(vm, d.ID)).Put(key(vm, d.ID), d)
	}
	return disks, t, nil
}

// Of reads a VM's disks, the OS disk first.
func (m *Manager) Of(ctx context.Context, vm string) ([]Disk, error) {
	rows, _, err := store.List[Disk](ctx, m.Store, store.Disks+vm+"/")
	disks := make([]Disk, 0, len(rows))
	for _, r := range rows {
		disks = append(disks, r.Value)
	}
	return disks, err
}

// Associate composes that a VM's disks are tenant's from now on, and that it gets
// a new one of each size in data. It returns all disks.
func (m *Manager) Associate(ctx context.Context, vm, tenant string, data []int64) ([]Disk, *store.Txn, error) {
	disks, err := m.Of(ctx, vm)
	if err != nil {
		return nil, nil, err
	}
	more, t, err := m.extend(vm, tenant, len(disks), data)
	if err != nil {
		return nil, nil, err
	}
	for i := range disks {
		disks[i].Tenant = tenant
		t.Put(key(vm, disks[i].ID), disks[i])
	}
	return append(disks, more...), t, nil
}

// Delete composes that a VM's disks are no more. Its host deletes the bytes.
func (m *Manager) Delete(ctx context.Context, vm string) (*store.Txn, error) {
	disks, err := m.Of(ctx, vm)
	t := &store.Txn{}
	for _, d := range disks {
		t.Delete(key(vm, d.ID))
	}
	return t, err
}

// Machine returns the disks as a host makes them.
func Machine(disks []Disk) []vnet.Disk {
	all := make([]vnet.Disk, 0, len(disks))
	for _, d := range disks {
		all = append(all, vnet.Disk{ID: d.ID, Size: d.Size, OS: d.OS})
	}
	return all
}

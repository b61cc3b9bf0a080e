package compute

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"replug/directory/store"
	"replug/directory/vnet"
)

// A Candidate is a host as far as placement cares.
type Candidate struct {
	vnet.HostInfo
	FreePorts int
	Unfit     string // what else makes it no host for the VM: "has ..."; "" is nothing
}

// Room is what VMs of a host use.
type Room struct {
	Memory int // MiB
	VMs    int
}

// UsedRoom returns what the VMs on each host use. A VM that is stopped keeps its
// room: it must be able to start again. One that rests in the pool has none: it is
// passed over if its host has none when it is to wake.
func (m *Manager) UsedRoom(ctx context.Context) (map[string]Room, error) {
	rows, _, err := store.List[VM](ctx, m.Store, store.VMs)
	used := make(map[string]Room)
	for _, r := range rows {
		u := used[r.Value.Host]
		u.VMs++
		if !r.Value.Rests() {
			u.Memory += r.Value.Memory
		}
		used[r.Value.Host] = u
	}
	return used, err
}

// Choose returns the host on which a VM of type t runs: want, or for "" the one
// with the most free memory, then the most free ports. Hosts are those that are
// connected. It returns [ErrExhausted] and why each host was passed over.
func (m *Manager) Choose(ctx context.Context, t Type, want string, hosts []Candidate) (Candidate, error) {
	used, err := m.UsedRoom(ctx)
	if err != nil {
		return Candidate{}, err
	}
	var best *Candidate
	var whys []string
	for i, h := range hosts {
		if want != "" && h.Name != want {
			continue
		}
		if why := tooSmall(t, h, used[h.Name]); why != "" {
			whys = append(whys, fmt.Sprintf("host %s %s", h.Name, why))
			continue
		}
		if best == nil || better(h, *best, used) {
			best = &hosts[i]
		}
	}
	switch {
	case best != nil:
		return *best, nil
	case want != "" && len(whys) == 0:
		return Candidate{}, fmt.Errorf("host %q: %w: it is not connected or not known; list the hosts, or leave it out", want, ErrNotSo)
	case len(whys) == 0:
		return Candidate{}, fmt.Errorf("host for VM type %q: %w: no host is connected; start a host agent", t.Name, ErrExhausted)
	}
	return Candidate{}, fmt.Errorf("host for VM type %q: %w: %s", t.Name, ErrExhausted, strings.Join(whys, "; "))
}

func tooSmall(t Type, h Candidate, used Room) string {
	switch free := h.Memory - used.Memory; {
	case h.Unfit != "":
		return h.Unfit
	case h.Memory == 0:
		return "runs no VMs"
	case !slices.Contains(h.Images, t.Image):
		return fmt.Sprintf("has no image %q (it has %s)", t.Image, strings.Join(h.Images, ", "))
	case free < t.Memory:
		return fmt.Sprintf("has %d MiB free of %d, %d are needed", free, h.Memory, t.Memory)
	case h.FreePorts < 1:
		return "has no port left"
	}
	return ""
}

func better(a, b Candidate, used map[string]Room) bool {
	freeA, freeB := a.Memory-used[a.Name].Memory, b.Memory-used[b.Name].Memory
	if freeA != freeB {
		return freeA > freeB
	}
	return a.FreePorts > b.FreePorts
}

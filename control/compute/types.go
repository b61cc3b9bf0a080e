package compute

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"replug/directory/store"
)

// A Type is a combination type (S18, S19): what a VM can't change without a reboot.
type Type struct {
	Name    string `json:"name"`
	CPUs    int    `json:"cpus"`
	Memory  int    `json:"memory"` // MiB
	Image   string `json:"image"`  // name in the hosts' image repositories
	OS      string `json:"os"`     // linux, windows
	Storage string `json:"storage"`
	Routing string `json:"routing"` // ipv4, ipv6, dual
	Disk    int64  `json:"disk"`    // bytes of the OS disk; 0: the image's
}

var nameForm = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)

// CheckName returns [ErrInvalid] for what can't be the name of a VM, a type or a
// tenant: it must be a DNS label (RFC 1123), a letter first.
func CheckName(what, s string) error {
	if !nameForm.MatchString(s) {
		return fmt.Errorf("%w %s name %q: lower-case letters, digits and dashes, 1 to 63, a letter first, no dash last", ErrInvalid, what, s)
	}
	return nil
}

func (t *Type) complete() error {
	if err := CheckName("type", t.Name); err != nil {
		return err
	}
	t.OS, t.Storage, t.Routing = orElse(t.OS, "linux"), orElse(t.Storage, "standard"), orElse(t.Routing, "ipv4")
	switch {
	case t.CPUs < 1 || t.CPUs > 256:
		return fmt.Errorf("%w: %d CPUs; must be 1 to 256", ErrInvalid, t.CPUs)
	case t.Memory < 16 || t.Memory > 1<<24:
		return fmt.Errorf("%w: %d MiB of memory; must be at least 16", ErrInvalid, t.Memory)
	case t.Image == "" || strings.ContainsAny(t.Image, "/\x00") || strings.HasPrefix(t.Image, "."):
		return fmt.Errorf("%w image %q: the name of a directory in the hosts' image repository", ErrInvalid, t.Image)
	case !oneOf(t.OS, "linux", "windows"):
		return fmt.Errorf("%w OS %q: linux or windows", ErrInvalid, t.OS)
	case !oneOf(t.Storage, "standard", "premium"):
		return fmt.Errorf("%w storage %q: standard or premium", ErrInvalid, t.Storage)
	case !oneOf(t.Routing, "ipv4", "ipv6", "dual"):
		return fmt.Errorf("%w routing %q: ipv4, ipv6 or dual", ErrInvalid, t.Routing)
	case t.Disk < 0:
		return fmt.Errorf("%w: a disk of %d bytes", ErrInvalid, t.Disk)
	}
	return nil
}

func orElse(s, unset string) string {
	if s == "" {
		return unset
	}
	return s
}

func oneOf(s string, words ...string) bool {
	for _, w := range words {
		if s == w {
			return true
		}
	}
	return false
}

// TypeKey is where a type is stored.
func TypeKey(name string) string { return store.Types + name }

// CreateType checks t, fills in its defaults and composes its row.
func (m *Manager) CreateType(ctx context.Context, t Type) (Type, *store.Txn, error) {
	if err := t.complete(); err != nil {
		return t, nil, fmt.Errorf("VM type %q: %w", t.Name, err)
	}
	if _, err := m.GetType(ctx, t.Name); err == nil {
		return t, nil, fmt.Errorf("VM type %q: %w: choose another name; a type never changes, since its VMs can't", t.Name, ErrExists)
	} else if !errors.Is(err, ErrNotFound) {
		return t, nil, err
	}
	return t, (&store.Txn{}).Absent(TypeKey(t.Name)).Put(TypeKey(t.Name), t), nil
}

// GetType reads a type; it returns [ErrNotFound].
func (m *Manager) GetType(ctx context.Context, name string) (Type, error) {
	row, err := store.Get[Type](ctx, m.Store, TypeKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return Type{}, fmt.Errorf("VM type %q: %w; create it first, or list the types there are", name, ErrNotFound)
	}
	return row.Value, err
}

// ListTypes returns all types.
func (m *Manager) ListTypes(ctx context.Context) ([]Type, error) {
	rows, _, err := store.List[Type](ctx, m.Store, store.Types)
	types := make([]Type, 0, len(rows))
	for _, r := range rows {
		types = append(types, r.Value)
	}
	return types, err
}

// DeleteType composes the removal of a type that no VM is of.
func (m *Manager) DeleteType(ctx context.Context, name string) (*store.Txn, error) {
	if _, err := m.GetType(ctx, name); err != nil {
		return nil, err
	}
	rows, rev, err := store.List[VM](ctx, m.Store, store.VMs)
	if err != nil {
		return nil, err
	}
	for _, r := range rows {
		if r.Value.Type == name {
			return nil, fmt.Errorf("VM type %q: %w by VM %s; delete its VMs and empty its pool first", name, ErrInUse, r.Value.ID)
		}
	}
	return (&store.Txn{}).Exists(TypeKey(name)).UnchangedUnder(store.VMs, rev).Delete(TypeKey(name)), nil
}

package dataplane

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"replug/directory/vnet"
)

// A record is what the agent remembers of a port across its own restarts, so
// that guests have their leases and documents while no server is there, and a
// swap that was cut in two is not started again. What is in force stands in the
// datapath alone; a record that disagrees loses.
type record struct {
	Intent vnet.Intent `json:"intent"`
	Run    run         `json:"run"`
	Staged *run        `json:"staged,omitempty"`
}

// A recorder keeps the records of all ports.
type recorder interface {
	save(record) error
	remove(port string) error
	load() ([]record, error)
}

// records keeps one file a port. They hold tenants' documents: nobody else may
// read them. They need not survive the machine: the datapath doesn't either.
type records struct{ dir string }

func newRecords(dir string) (*records, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of port records: %w", err)
	}
	return &records{dir}, nil
}

func (r *records) path(port string) string {
	return filepath.Join(r.dir, url.PathEscape(port)+".json")
}

// save replaces the port's record, whole or not at all.
func (r *records) save(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode record of port %s: %w", rec.Intent.Port, err)
	}
	path := r.path(rec.Intent.Port)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return fmt.Errorf("write record of port %s: %w", rec.Intent.Port, err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("replace record of port %s: %w", rec.Intent.Port, err)
	}
	return nil
}

func (r *records) remove(port string) error {
	if err := os.Remove(r.path(port)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove record of port %s: %w", port, err)
	}
	return nil
}

// load reads all records. A broken one is left out and named in the error: the
// port works without it. What a killed agent was writing is removed: it holds a
// tenant's document, also of a port that has gone.
func (r *records) load() ([]record, error) {
	files, err := filepath.Glob(filepath.Join(r.dir, "*.json"))
	half, err2 := filepath.Glob(filepath.Join(r.dir, "*.json.new"))
	if err := errors.Join(err, err2); err != nil {
		return nil, err
	}
	var all []record
	var broken []error
	for _, f := range half {
		if err := os.Remove(f); err != nil {
			broken = append(broken, fmt.Errorf("half a record stays: %w", err))
		}
	}
	for _, f := range files {
		var rec record
		b, err := os.ReadFile(f)
		if err == nil {
			err = json.Unmarshal(b, &rec)
		}
		if err != nil || rec.Intent.Port == "" || rec.Intent.ID == 0 {
			broken = append(broken, fmt.Errorf("record %s can't be used (%v): it will be written again", f, err))
			continue
		}
		all = append(all, rec)
	}
	return all, errors.Join(broken...)
}

// Package flowlog keeps a log of flows for each network: a file of JSON lines that
// is rotated by size. What it keeps is bounded for each network, so that one that
// is busy takes nothing from another. It decides neither what is logged nor who
// may read it; the files are root's.
package flowlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"replug/directory/vnet"
)

// Events of a [Record].
const (
	Start  = "start"
	Denied = "denied" // it did not start
	End    = "end"
)

// A Record is one line.
type Record struct {
	Time      time.Time      `json:"time"`
	Event     string         `json:"event"`
	Tenant    string         `json:"tenant"`
	Network   vnet.Moniker   `json:"network"`
	VNI       vnet.VNI       `json:"vni"`
	Port      string         `json:"port"`
	Direction vnet.Direction `json:"direction"` // in: the remote end began it
	Protocol  vnet.Protocol  `json:"protocol"`
	Local     netip.AddrPort `json:"local"` // the port's end; a port number of 0: it has none
	Remote    netip.AddrPort `json:"remote"`
	Verdict   vnet.Action    `json:"verdict"`
	Rule      string         `json:"rule"`              // group/name, or what decided instead
	Reason    string         `json:"reason,omitempty"`  // of a denial: the datapath's drop reason
	Seconds   float64        `json:"seconds,omitempty"` // an ended flow lasted so long
	Packets   uint64         `json:"packets,omitempty"` // both directions, of an ended flow
	Bytes     uint64         `json:"bytes,omitempty"`
}

// Limits bound what is kept of one network.
type Limits struct {
	File  int64         // bytes of a file before the next one is begun
	Files int           // files kept, the current one included
	Age   time.Duration // older files go
}

// Defaults are the limits of a host agent: 64 MiB a network, a month.
var Defaults = Limits{File: 16 << 20, Files: 4, Age: 30 * 24 * time.Hour}

// A Log is not safe for concurrent use.
type Log struct {
	dir    string
	limits Limits
	files  map[vnet.VNI]*file
	lost   int // records, see [Log.Lost]
}

type file struct {
	f       *os.File
	out     *bufio.Writer
	size    int64
	idle    bool // nothing was written since the last flush
	pending int  // records since the last flush
}

// Open makes the directory, and removes what is too old in it.
func Open(dir string, l Limits) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of flow logs: %w", err)
	}
	log := &Log{dir: dir, limits: l, files: map[vnet.VNI]*file{}}
	return log, log.Expire(time.Now())
}

// Expire removes files that nobody has written to for longer than the limit.
func (l *Log) Expire(now time.Time) error {
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return fmt.Errorf("list flow logs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".jsonl") {
			continue
		}
		if i, err := e.Info(); err == nil && now.Sub(i.ModTime()) > l.limits.Age {
			errs = append(errs, os.Remove(filepath.Join(l.dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Write adds a line to its network's file. It is on disk after the next Flush.
func (l *Log) Write(r *Record) error {
	err := l.write(r)
	if err != nil {
		l.lost++
	}
	return err
}

// Lost returns how many records could not be written since the last call; of those
// that were buffered when a file broke some may be on disk all the same.
func (l *Log) Lost() int {
	n := l.lost
	l.lost = 0
	return n
}

func (l *Log) write(r *Record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("flow record: %w", err)
	}
	f := l.files[r.VNI]
	if f != nil && f.size+int64(len(line)) >= l.limits.File {
		if err := l.rotate(r.VNI); err != nil {
			return err
		}
		f = nil
	}
	if f == nil {
		if f, err = l.open(r.VNI); err != nil {
			return err
		}
	}
	f.idle = false
	f.size += int64(len(line)) + 1
	_, err = f.out.Write(append(line, '\n'))
	if err != nil {
		return l.broken(r.VNI, err)
	}
	f.pending++
	return nil
}

// broken lets go of a file that can't be written: the next record tries anew.
func (l *Log) broken(v vnet.VNI, err error) error {
	l.lost += l.files[v].pending
	_ = l.files[v].f.Close() // the error that matters is known
	delete(l.files, v)
	return fmt.Errorf("write flow log %s: %w", l.path(v, 0), err)
}

func (l *Log) path(v vnet.VNI, n int) string {
	name := filepath.Join(l.dir, strconv.Itoa(int(v))+".jsonl")
	if n > 0 {
		name += "." + strconv.Itoa(n)
	}
	return name
}

func (l *Log) open(v vnet.VNI) (*file, error) {
	f, err := os.OpenFile(l.path(v, 0), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open flow log: %w", err)
	}
	i, err := f.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open flow log: %w", err), f.Close())
	}
	l.files[v] = &file{f: f, out: bufio.NewWriterSize(f, 32<<10), size: i.Size()}
	return l.files[v], nil
}

// rotate makes room for a new file: the oldest one goes.
func (l *Log) rotate(v vnet.VNI) error {
	f := l.files[v]
	delete(l.files, v)
	if err := errors.Join(f.out.Flush(), f.f.Close()); err != nil {
		l.lost += f.pending
		return fmt.Errorf("close flow log: %w", err)
	}
	for n := l.limits.Files - 1; n > 0; n-- {
		err := os.Rename(l.path(v, n-1), l.path(v, n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate flow log: %w", err)
		}
	}
	if l.limits.Files == 1 {
		return os.Remove(l.path(v, 0))
	}
	return nil
}

// Flush writes what is buffered, and closes files that are not written to.
func (l *Log) Flush() error {
	var errs []error
	for v, f := range l.files {
		if err := f.out.Flush(); err != nil {
			errs = append(errs, l.broken(v, err))
			continue
		}
		f.pending = 0
		if f.idle {
			errs = append(errs, f.f.Close())
			delete(l.files, v)
		}
		f.idle = true
	}
	return errors.Join(errs...)
}

// Close writes what is buffered and closes all files.
func (l *Log) Close() error {
	err := l.Flush()
	for v, f := range l.files {
		err = errors.Join(err, f.f.Close())
		delete(l.files, v)
	}
	return err
}

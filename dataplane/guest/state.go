package guest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"replug/directory/vnet"
)

// Why a document is not applied.
var (
	errOlder   = errors.New("older than the configuration that is applied")
	errWasDone = errors.New("partial, but this machine has its final configuration")
	errTag     = errors.New("unknown tag")
)

// state is what survives a reboot: the last document that was applied.
type state struct {
	mu          sync.Mutex // held while a document is applied, and by commands before and after they run
	UUID        string     `json:"uuid,omitempty"`     // the machine's, whose state it is; "": it has none
	Instance    string     `json:"instance,omitempty"` // and the document's name of it
	Epoch       vnet.Epoch `json:"epoch"`
	Kind        string     `json:"kind"`                  // of a report: partial or final
	Placeholder string     `json:"placeholder,omitempty"` // user made for a partial document
	// Ran is what has come of each command to run once, by its id: what went wrong,
	// or "". One that was begun is not begun again.
	Ran map[string]string `json:"ran,omitempty"`
	DNS []netip.Addr      `json:"dns,omitempty"` // the document's name servers
	// Done is a digest of each setting as it was applied last, by its name.
	Done map[string]string `json:"done,omitempty"`

	running   string // the command that runs now: what has come of it is not known
	inherited bool   // the document was applied by an agent that kept no digests
}

// loadState returns an empty state, and why, if there is none that can be read.
func loadState(m files) (*state, error) {
	s := &state{}
	b, err := os.ReadFile(m.path(stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(b, s)
	}
	if err != nil {
		return &state{}, fmt.Errorf("read %s: %w", stateFile, err)
	}
	return s, nil
}

func (s *state) save(m files) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the state: %w", err)
	}
	if err := errors.Join(m.write(stateFile, 0o600, append(b, '\n')), m.keep(filepath.Dir(stateFile))); err != nil {
		return fmt.Errorf("remember what was applied: %w", err)
	}
	return nil
}

// settle begins anew when what is remembered is another machine's: the image was made of
// one in which the agent had run. What that one has on the disk, its placeholder user and
// its name servers, stays known, to be taken away. Of a state without a name, that
// of an earlier agent, nothing is known.
func (s *state) settle(uuid, instance string) (anew bool) {
	other := func(was, is string) bool { return was != "" && is != "" && was != is }
	if anew = other(s.UUID, uuid) || other(s.Instance, instance); anew {
		s.Epoch, s.Kind = 0, ""
		clear(s.Ran)
		clear(s.Done)
	}
	s.UUID, s.Instance = cmp.Or(uuid, s.UUID), cmp.Or(instance, s.Instance)
	return anew
}

// once has a setting applied, unless it is as it was last: what the machine's owner has
// made of it since, a key taken away or another password, stays over any number of
// swaps, each of which brings the whole document again. On another disk it is another
// setting; what was applied to one that is away now is on that.
func (s *state) once(setting, disk string, value any, apply func() error) error {
	b, err := json.Marshal([]any{disk, value})
	if err != nil {
		return fmt.Errorf("encode the %s: %w", setting, err)
	}
	sum := sha256.Sum256(b)
	digest := hex.EncodeToString(sum[:])
	if was := s.Done[setting]; was == digest || disk == awayDisk && was != "" {
		return nil
	}
	if !s.inherited {
		if err := apply(); err != nil {
			delete(s.Done, setting) // half of it may be there
			return err
		}
	}
	if s.Done == nil {
		s.Done = map[string]string{}
	}
	s.Done[setting] = digest
	return nil
}

// accepts says whether d may be applied, and whether it is already. Only "partial"
// and no tag at all are known: anything else must not pass for a final document.
func (s *state) accepts(d *vnet.Document, kind string) (applied bool, err error) {
	switch {
	case d.Tag != "" && d.Tag != vnet.TagPartial:
		return false, fmt.Errorf("%w %q (want %q, or none)", errTag, d.Tag, vnet.TagPartial)
	case d.Epoch < s.Epoch:
		return false, fmt.Errorf("epoch %s is %w (%s)", d.Epoch, errOlder, s.Epoch)
	case kind == vnet.ReportPartial && s.Kind == vnet.ReportFinal:
		return false, fmt.Errorf("epoch %s is %w (epoch %s)", d.Epoch, errWasDone, s.Epoch)
	}
	return d.Epoch == s.Epoch && kind == s.Kind, nil
}

package control

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"replug/directory/store"
)

// A feed tells whoever listens which rows have changed. It keeps no values: who
// is told reads anew, so being told too often or twice does no harm.
type feed struct {
	mu        sync.Mutex
	listeners map[*listener]struct{}
}

func newFeed() *feed { return &feed{listeners: make(map[*listener]struct{})} }

// A listener collects the keys that have changed under its prefixes until they
// are taken. Two changes of a key before that are one.
type listener struct {
	feed     *feed
	prefixes []string
	ready    chan struct{} // has a token when there is something to take

	mu   sync.Mutex
	keys map[string]struct{}
	all  bool
}

// listen begins to listen. The first thing to take is "all".
func (f *feed) listen(prefixes ...string) *listener {
	l := &listener{feed: f, prefixes: prefixes, ready: make(chan struct{}, 1), keys: make(map[string]struct{}), all: true}
	l.ready <- struct{}{}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.listeners[l] = struct{}{}
	return l
}

func (l *listener) close() {
	l.feed.mu.Lock()
	defer l.feed.mu.Unlock()
	delete(l.feed.listeners, l)
}

// take returns what has changed since the last call; all: possibly everything.
func (l *listener) take() (keys []string, all bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.keys {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	all = l.all
	clear(l.keys)
	l.all = false
	return keys, all
}

func (l *listener) add(key string) {
	if !slices.ContainsFunc(l.prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
		return
	}
	l.mu.Lock()
	l.keys[key] = struct{}{}
	l.mu.Unlock()
	l.wake()
}

func (l *listener) wake() {
	select {
	case l.ready <- struct{}{}:
	default:
	}
}

// everything makes the listener look at all of its rows again.
func (l *listener) everything() {
	l.mark()
	l.wake()
}

// mark makes the next thing to take "all", whenever that is.
func (l *listener) mark() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = true
}

// touch tells of changes, also of those that stand in memory only.
func (f *feed) touch(keys ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.listeners {
		for _, k := range keys {
			l.add(k)
		}
	}
}

func (f *feed) touchAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for l := range f.listeners {
		l.everything()
	}
}

// run follows the store until ctx ends. After a gap everybody looks at everything.
func (f *feed) run(ctx context.Context, s *store.Store, log *slog.Logger) error {
	for {
		r, err := s.Client().Get(ctx, store.Cluster, clientv3.WithCountOnly())
		if err == nil {
			f.touchAll()
			err = s.Watch(ctx, store.Root, r.Header.Revision+1, func(b store.Batch) error {
				for _, e := range b.Events {
					f.touch(e.Key)
				}
				return nil
			})
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		log.Warn("the store's changes can't be followed; trying again", "error", err)
		if !pause(ctx, retryPause) {
			return ctx.Err()
		}
	}
}

// retryPause is how long is waited before what has failed is tried again.
const retryPause = 250 * time.Millisecond

// pause waits for d; it returns false when ctx ended before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

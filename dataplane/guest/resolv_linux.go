package guest

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
)

// A resolvConf is the file that says whom to ask for names, and its only writer here: the
// document's servers come first. After them are those of both families' leases, where our
// own client has them; else the file is another program's, and the document's stand in a
// block of their own, which goes as it came: the program may give the same servers.
type resolvConf struct {
	files
	log logger

	mu        sync.Mutex // the document comes as it likes, and so do the families
	document  []netip.Addr
	leased    bool // our own client has spoken
	four, six []netip.Addr
	domain    string
}

const (
	resolvFile = "etc/resolv.conf"
	resolvMark = "# by replug-guest\n" // a file with it is written also if there is no server any more
	blockBegin = "# of replug-guest's document:"
	blockEnd   = "# end of replug-guest's document"
)

// remember takes what was applied by an earlier run of the agent.
func (r *resolvConf) remember() {
	if s, err := loadState(r.files); err == nil {
		r.document = s.DNS
	}
}

// forget is for a link that has just come up, or a NIC that another client has: what was
// said on it before may have been another network's. The file stays until there is a lease.
func (r *resolvConf) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leased, r.four, r.six, r.domain = false, nil, nil, ""
}

// set4 takes what a lease says.
func (r *resolvConf) set4(l *lease) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.four, r.domain = l.dns, l.domain
	r.lease()
}

// set6 takes what a router and its DHCPv6 say.
func (r *resolvConf) set6(servers []netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.six = servers
	r.lease()
}

func (r *resolvConf) lease() {
	r.leased = true
	if err := r.write(); err != nil {
		r.log.say("name servers not set: %v", err)
	}
}

// setDocument takes what a document says. A file that leads elsewhere is a resolver's,
// which is told by its own configuration.
func (r *resolvConf) setDocument(servers []netip.Addr) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.document = servers
	if r.leased {
		return r.write()
	}
	info, err := os.Lstat(r.path(resolvFile))
	if err != nil && len(servers) == 0 || err == nil && info.Mode().Type() == fs.ModeSymlink {
		return nil
	}
	return r.edit(resolvFile, 0o644, r.block)
}

// block puts the document's servers before all lines, in place of a former document's.
func (r *resolvConf) block(lines []string) []string {
	begin, end := slices.Index(lines, blockBegin), slices.Index(lines, blockEnd)
	if 0 <= begin && begin < end {
		lines = slices.Delete(lines, begin, end+1)
	}
	if len(r.document) == 0 {
		return lines
	}
	ours := []string{blockBegin}
	for _, a := range r.document {
		ours = append(ours, "nameserver "+a.String())
	}
	return append(append(ours, blockEnd), lines...)
}

// write brings the file up to date; one that others made stays if we know no server.
func (r *resolvConf) write() error {
	var all []netip.Addr
	for _, a := range slices.Concat(r.document, r.four, r.six) {
		if !slices.Contains(all, a) {
			all = append(all, a)
		}
	}
	was, _ := os.ReadFile(r.path(resolvFile)) // none: not ours
	if len(all) == 0 && !strings.Contains(string(was), resolvMark) {
		return nil
	}
	text := resolvMark
	if isName(r.domain) {
		text += fmt.Sprintf("search %s\n", r.domain)
	}
	for _, a := range all {
		text += fmt.Sprintf("nameserver %s\n", a)
	}
	return r.put(resolvFile, []byte(text), false, func(file string) error { return os.Chmod(file, 0o644) })
}

package imds

import (
	"net/http"
	"strings"

	"replug/directory/vnet"
)

// A dialect is the way in which one kind of guest asks. The document is the same
// in all of them.
type dialect struct {
	roots []string // of its paths; no path begins with two
	// key refuses a request without what proves that it is the guest's own: a
	// header or a token that nobody can be made to send by a link.
	key    func(*Server, *http.Request, Caller) *refusal
	answer func(*Server, http.ResponseWriter, *http.Request, Caller) *refusal
}

// dialects are all there are. Those of OpenStack and NoCloud know neither header
// nor token: they are spoken to guests whose image says that it needs them.
var dialects = []*dialect{
	{[]string{PathRoot}, header("Metadata", "true"), (*Server).own},
	{[]string{"/metadata/"}, header("Metadata", "true"), (*Server).azure},
	{[]string{"/machine"}, wireKey, (*Server).wireServer},
	{ec2Roots, (*Server).ec2Token, (*Server).ec2},
	{[]string{"/openstack"}, needed(vnet.PersonalityOpenStack), (*Server).openStack},
	{[]string{"/nocloud/"}, needed(vnet.PersonalityNoCloud), (*Server).noCloud},
}

// dialectOf returns the dialect of a path, or nil.
func dialectOf(path string) *dialect {
	for _, d := range dialects {
		for _, root := range d.roots {
			rest, ok := strings.CutPrefix(path, root)
			if ok && (rest == "" || rest[0] == '/' || root[len(root)-1] == '/') {
				return d
			}
		}
	}
	return nil
}

// header wants a header to be there, and to have a value if one is given.
func header(name, value string) func(*Server, *http.Request, Caller) *refusal {
	no := &refusal{http.StatusBadRequest, "no " + strings.ToLower(name) + " header", `send the header "` + name + ": " + value + `"`, false}
	return func(_ *Server, r *http.Request, _ Caller) *refusal {
		got := r.Header[name]
		if len(got) != 1 || value != "" && got[0] != value {
			return no
		}
		return nil
	}
}

// needed wants the caller's image to be made for the dialect.
func needed(p vnet.Personality) func(*Server, *http.Request, Caller) *refusal {
	return func(s *Server, _ *http.Request, who Caller) *refusal {
		pub, _ := s.published(who)
		if pub.guest.Personality != p {
			return &refusal{http.StatusNotFound, "dialect is not the image's", `give the image the personality "` + string(p) + `", or ask ` + PathConfig, false}
		}
		return nil
	}
}

// current returns what the caller may read now, or why it may not.
func (s *Server) current(who Caller) (publication, *refusal) {
	pub, over := s.published(who)
	switch {
	case over:
		return pub, &refusal{http.StatusGone, "epoch is over", "renew the DHCP lease, then ask on a new connection", true}
	case pub.doc == nil:
		return pub, &refusal{http.StatusNotFound, "nothing published", "ask again in a second", false}
	}
	return pub, nil
}

// text answers with a text as it is.
func text(w http.ResponseWriter, kind, body string) *refusal {
	w.Header().Set("Content-Type", kind)
	_, _ = w.Write([]byte(body)) // the guest has gone: nobody to tell
	return nil
}

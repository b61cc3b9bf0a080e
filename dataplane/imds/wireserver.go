package imds

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"

	"replug/directory/vnet"
)

// The wire server is where cloud-init's Azure data source says that it is ready.
// It says so twice in the same words, in the pool and as its owner's. What tells
// the two apart is the incarnation of the goal state, which it fetches before each
// report and sends back: the epoch of the document that it then had.
const (
	pathMachine     = "/machine"
	pathMachineRoot = "/machine/" // as the goal state is asked for
	wireVersion     = "2012-11-30"
	maxWords        = 512 // bytes of a failure's description that are kept
)

// wireKey wants the header that names the protocol's version, except of who asks
// which versions there are.
func wireKey(s *Server, r *http.Request, who Caller) *refusal {
	if r.URL.Query().Get("comp") == "versions" {
		return nil
	}
	return header("X-Ms-Version", "")(s, r, who)
}

// wireServer answers in the wire server's dialect.
func (s *Server) wireServer(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	if r.URL.Path != pathMachine && r.URL.Path != pathMachineRoot {
		return &unknownPath
	}
	switch r.URL.Query().Get("comp") {
	case "versions":
		return text(w, "text/xml; charset=utf-8", wireVersions)
	case "goalstate":
		if no := only(r, http.MethodGet); no != nil {
			return no
		}
		return s.goalState(w, who)
	case "health":
		if no := only(r, http.MethodPost); no != nil {
			return no
		}
		return s.health(w, r, who)
	}
	return &unknownPath
}

const wireVersions = xml.Header + `<Versions><Preferred><Version>` + wireVersion + `</Version></Preferred>` +
	`<Supported><Version>` + wireVersion + `</Version></Supported></Versions>`

// A goalState is what a guest reports on. There are no certificates in it: keys are
// in the metadata.
type goalState struct {
	XMLName     xml.Name `xml:"GoalState"`
	Version     string   `xml:"Version"`
	Incarnation string   `xml:"Incarnation"`
	Container   string   `xml:"Container>ContainerId"`
	Instance    string   `xml:"Container>RoleInstanceList>RoleInstance>InstanceId"`
	State       string   `xml:"Container>RoleInstanceList>RoleInstance>State"`
}

// goalState answers once there is a document to report on: before the guest was
// seen on its new address there is none, and a guest can't get ahead of that.
func (s *Server) goalState(w http.ResponseWriter, who Caller) *refusal {
	pub, no := s.current(who)
	if no != nil {
		return no
	}
	b, err := xml.Marshal(goalState{Version: wireVersion, Incarnation: incarnation(pub.doc.Epoch),
		Container: pub.guest.UUID, Instance: pub.doc.Instance, State: "Started"})
	if err != nil {
		s.cfg.Log.Error("goal state can't be written", "port", who.Port, "err", err)
		return &refusal{http.StatusInternalServerError, "document can't be written", "correct the VM's settings", false}
	}
	return text(w, "text/xml; charset=utf-8", xml.Header+string(b))
}

func incarnation(e vnet.Epoch) string { return strconv.FormatUint(uint64(e), 10) }

// health takes a report. What a guest that means no harm may send late or twice is
// taken without an effect, and counted: an error would make it send that again for
// twenty minutes.
func (s *Server) health(w http.ResponseWriter, r *http.Request, who Caller) *refusal {
	body, _ := io.ReadAll(r.Body) // it is in memory
	h, err := parseHealth(body)
	if err != nil {
		return &refusal{http.StatusBadRequest, "report can't be read", "send one Health document: " + err.Error(), false}
	}
	pub, no := s.current(who)
	if no != nil {
		return no
	}
	switch e := pub.doc.Epoch; {
	case h.incarnation > e:
		return &refusal{http.StatusConflict, "report on an unknown incarnation", "ask for the goal state, and report on that", false}
	case h.incarnation < e:
		s.cfg.Refused(who.Port, "report on an old incarnation")
	case pub.ready == e:
		s.cfg.Refused(who.Port, "report again")
	default:
		if no := s.take(r, who, h.report(pub.doc), s.cfg.OnReport); no != nil {
			return no
		}
		if h.ready {
			s.wasReady(who.Port, e)
		}
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// wasReady remembers that a guest has reported its success of an epoch.
func (s *Server) wasReady(id vnet.PortID, e vnet.Epoch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.port(id); p.epoch == e {
		p.ready = e
	}
}

// A health is what a guest reports.
type health struct {
	incarnation vnet.Epoch
	ready       bool
	why         string // not ready
}

func (h *health) report(d *vnet.Document) vnet.GuestReport {
	kind := vnet.ReportFinal
	if d.Partial() {
		kind = vnet.ReportPartial
	}
	return vnet.GuestReport{Epoch: d.Epoch, Kind: kind, OK: h.ready, Error: h.why}
}

// Why a health report can't be read.
var (
	errNotXML      = errors.New("it is not XML, or cut off")
	errDoctype     = errors.New("a DOCTYPE is not allowed")
	errState       = errors.New("its State is neither Ready nor NotReady")
	errIncarnation = errors.New("its GoalStateIncarnation is not a number")
	errTwice       = errors.New("an element is there twice, or the document is too deep")
)

// Places of the report's texts. Namespaces are ignored, as the real service does.
const (
	inIncarnation = "Health/GoalStateIncarnation"
	inState       = "Health/Container/RoleInstanceList/Role/Health/State"
	inSubStatus   = "Health/Container/RoleInstanceList/Role/Health/Details/SubStatus"
	inDescription = "Health/Container/RoleInstanceList/Role/Health/Details/Description"
)

// parseHealth reads a health report of at most maxBody bytes. No DOCTYPE, so no
// entities but the five of XML itself; no element of interest twice.
func parseHealth(body []byte) (*health, error) {
	texts, err := leaves(body, inIncarnation, inState, inSubStatus, inDescription)
	if err != nil {
		return nil, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(texts[inIncarnation]), 10, 64)
	if err != nil {
		return nil, errIncarnation
	}
	h := &health{incarnation: vnet.Epoch(n)}
	switch strings.TrimSpace(texts[inState]) {
	case "Ready":
		h.ready = true
	case "NotReady":
		why := strings.TrimSpace(texts[inSubStatus] + ": " + texts[inDescription])
		h.why = strings.ToValidUTF8(why[:min(len(why), maxWords)], "?")
	default:
		return nil, errState
	}
	return h, nil
}

// leaves returns the texts of the wanted elements of a document, by their path.
func leaves(body []byte, wanted ...string) (map[string]string, error) {
	const deepest = 16
	d := xml.NewDecoder(bytes.NewReader(body))
	d.Entity = map[string]string{}
	texts, seen := map[string]string{}, map[string]bool{}
	for path := []string{}; ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && len(seen) > 0 {
			return texts, nil
		}
		if err != nil {
			return nil, errNotXML
		}
		switch t := token.(type) {
		case xml.Directive:
			return nil, errDoctype
		case xml.StartElement:
			path = append(path, t.Name.Local)
			at := strings.Join(path, "/")
			if len(path) > deepest || seen[at] && wants(wanted, at) {
				return nil, errTwice
			}
			seen[at] = true
		case xml.EndElement:
			path = path[:len(path)-1]
		case xml.CharData:
			if at := strings.Join(path, "/"); wants(wanted, at) {
				texts[at] += string(t)
			}
		}
	}
}

func wants(wanted []string, at string) bool {
	for _, w := range wanted {
		if w == at {
			return true
		}
	}
	return false
}

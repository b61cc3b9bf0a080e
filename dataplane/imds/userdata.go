package imds

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/mail"
	"net/textproto"
	"slices"

	"replug/directory/vnet"
)

// wake is what makes a guest that slept good before anything of its owner's runs: its
// random numbers, and its clock, by the hardware's, which did not stand still. A seed alone
// (cloud-init's random_seed) is of use within a minute (drivers/char/random.c); at once it
// is by RNDRESEEDCRNG, for which cloud-init's own language has a word.
const wake = `echo %s | base64 -d >/dev/urandom
python3 -c 'import fcntl; fcntl.ioctl(open("/dev/urandom", "wb"), 0x5207)' && echo "replug: random numbers are renewed"
now=$(cat /sys/class/rtc/rtc0/since_epoch) && [ "$now" -gt "$(date +%%s)" ] && date -s "@$now"; true`

// wakeConfig is the configuration of a guest that slept: "" for one that did not.
func wakeConfig(d *vnet.Document) string {
	if d.Woken == nil {
		return ""
	}
	return written(map[string]any{"bootcmd": [][]string{{"sh", "-c", fmt.Sprintf(wake, base64.StdEncoding.EncodeToString(d.Woken.Seed))}}}, "prepend")
}

// written is cloud-config that is read after the owner's user data: that wins, and lists
// of both are kept.
func written(c map[string]any, lists string) string {
	c["merge_how"] = "dict(recurse_array,no_replace)+list(" + lists + ")+str()"
	b, _ := json.Marshal(c)                     // plain strings
	return "#cloud-config\n" + string(b) + "\n" // JSON is YAML
}

// cloudConfig is what the metadata of other clouds has no word for, as cloud-init's
// own configuration: "" when there is nothing. With a user in it, for clouds that
// can't name one.
func cloudConfig(d *vnet.Document, user bool) string {
	c := map[string]any{}
	if user && d.User != "" {
		c["user"] = map[string]any{"name": d.User}
	}
	if d.TimeZone != "" {
		c["timezone"] = d.TimeZone
	}
	if d.User != "" && d.PasswordHash != "" {
		c["chpasswd"] = map[string]any{"expire": false,
			"users": []map[string]string{{"name": d.User, "password": d.PasswordHash, "type": "hash"}}}
	}
	var files []map[string]string
	for _, f := range d.Files {
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		files = append(files, map[string]string{"path": f.Path, "permissions": fmt.Sprintf("%04o", mode),
			"encoding": "b64", "content": base64.StdEncoding.EncodeToString([]byte(f.Content))})
	}
	if files != nil {
		c["write_files"] = files
	}
	var commands []string
	for _, r := range d.RunOnce {
		commands = append(commands, r.Command)
	}
	if commands != nil {
		c["runcmd"] = commands
	}
	if len(c) == 0 {
		return ""
	}
	return written(c, "append")
}

// userData is the owner's user data, with what else the document says beside it.
func userData(d *vnet.Document) []byte {
	return joined(d.UserData, cloudConfig(d, false), wakeConfig(d))
}

// joined makes one piece of user data of the owner's and cloud-config.
func joined(own []byte, configs ...string) []byte {
	configs = slices.DeleteFunc(configs, func(c string) bool { return c == "" })
	switch {
	case len(configs) == 0:
		return own
	case len(own) == 0 && len(configs) == 1:
		return []byte(configs[0])
	}
	const boundary = "===replug==="
	var parts bytes.Buffer
	w := multipart.NewWriter(&parts)
	_ = w.SetBoundary(boundary)
	owners(w, own)
	for _, c := range configs {
		part(w, "text/cloud-config", []byte(c))
	}
	_ = w.Close() // into memory: never fails
	return append([]byte("Content-Type: multipart/mixed; boundary=\""+boundary+"\"\nMIME-Version: 1.0\n\n"), parts.Bytes()...)
}

// owners adds what the owner has handed over.
func owners(w *multipart.Writer, own []byte) {
	kind := "text/plain" // cloud-init looks at what it begins with
	if bytes.HasPrefix(own, []byte{0x1f, 0x8b}) {
		kind = "application/gzip"
	}
	m, err := mail.ReadMessage(bytes.NewReader(own))
	switch {
	case len(own) == 0:
	case err == nil && m.Header.Get("Content-Type") != "":
		inner, _ := w.CreatePart(textproto.MIMEHeader(m.Header)) // it has several parts itself
		_, _ = io.Copy(inner, m.Body)
	default:
		part(w, kind, own)
	}
}

func part(w *multipart.Writer, kind string, body []byte) {
	p, _ := w.CreatePart(textproto.MIMEHeader{"Content-Type": {kind}, "Content-Transfer-Encoding": {"base64"}})
	_, _ = p.Write([]byte(base64.StdEncoding.EncodeToString(body)))
}

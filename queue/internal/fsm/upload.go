package fsm

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/slimfaas/slimfaas/queue/internal/command"
)

// upload is a body on its way: parts that no accept has taken yet. It is never a call, and no counter knows of it.
type upload struct {
	id      command.ID
	place   uint64 // a sequence of its own: the parts are stored under it
	session uint64 // live: the upload goes with it
	parts   uint32
	part    uint32 // bytes of the first part; all but the last have as many
	size    uint64 // of all parts, in bytes
	index   uint64 // of the entry with the last part
}

// Upload as the shell sees it.
type Upload struct {
	ID      command.ID
	Session uint64
	Parts   uint32
	Bytes   uint64 // of its parts so far
	Index   uint64 // of the entry with the last part
	Ended   bool   // in a Change only: accepted or dropped
}

// Body of a call whose payload lacks it: parts in the store.
type Body struct {
	Place uint64 // of the parts in the store
	Parts uint32
	Part  uint32 // bytes of each part but the last, which may have fewer
	Size  uint64 // of all parts, in bytes
	Sum   uint32 // CRC-32C of all parts, as the edge counted it
}

// PartKey is the key of a part in BucketPayload.
func PartKey(place uint64, number uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(make([]byte, 0, 12), place), number)
}

func (a *application) putPart(c command.PutPart) Result {
	size := uint64(len(c.Data))
	u := a.uploads[c.ID]
	switch {
	case size == 0:
		return Result{Code: Invalid, Detail: "part is empty"}
	case u == nil && a.known(c.ID):
		return Result{Code: Conflict, Detail: "a call of this id was accepted"}
	case u == nil && c.Number != 0:
		return Result{Code: Conflict, Detail: "no upload of this id is under way"}
	case u == nil && !a.live(c.Session):
		return Result{Code: Stale, Detail: "session is not live"}
	case u == nil && c.MaxUploads > 0 && uint64(len(a.uploads)) >= c.MaxUploads:
		return Result{Code: Full, Detail: "as many uploads are under way as may be"}
	case u != nil && u.session != c.Session:
		return Result{Code: Conflict, Detail: "upload is another session's"}
	case u != nil && c.Number < u.parts:
		return Result{Repeated: true}
	case u != nil && (c.Number > u.parts || u.size != uint64(u.parts)*uint64(u.part)):
		return Result{Code: Conflict, Detail: "part does not follow the last one"}
	case u != nil && size > uint64(u.part):
		return Result{Code: Invalid, Detail: "part is larger than the first one"}
	case c.MaxBytes > 0 && a.uploadBytes+size > c.MaxBytes:
		return Result{Code: Full, Detail: "uploads under way take as many bytes as they may"}
	}
	if u == nil {
		a.Machine.seq++
		u = &upload{id: c.ID, place: a.seq, session: c.Session, part: uint32(size)}
		a.uploads[c.ID] = u
	}
	u.parts++
	u.size += size
	u.index = a.index
	a.Machine.uploadBytes += size
	a.put(BucketPayload, PartKey(u.place, c.Number), c.Data)
	a.put(BucketUpload, u.key(), encodeUpload(u))
	a.changeUpload(u, false)
	return Result{}
}

func (a *application) dropUploadCommand(c command.DropUpload) Result {
	u := a.uploads[c.ID]
	switch {
	case u == nil:
		return Result{Code: NotFound, Detail: "no upload of this id is under way"}
	case c.Index != 0 && c.Index != u.index:
		return Result{Code: Conflict, Detail: "upload has moved on"}
	}
	a.dropUpload(u)
	return Result{}
}

// uploaded is the upload an accept is about. A refusal says why there is none that fits.
func (m *Machine) uploaded(c command.Accept) (u *upload, refusal *Result) {
	if c.Body == (command.Body{}) {
		return nil, nil
	}
	u = m.uploads[c.ID]
	switch {
	case u == nil:
		return nil, &Result{Code: Conflict, Detail: "no upload of this id is under way"}
	case u.parts != c.Body.Parts || u.size != c.Body.Size:
		return u, &Result{Code: Conflict, Detail: "upload has not the parts or bytes that the accept says"}
	}
	return u, nil
}

// dropUpload with its parts.
func (a *application) dropUpload(u *upload) {
	a.removeParts(u.place, u.parts)
	a.endUpload(u)
}

// endUpload leaves the parts where they are.
func (a *application) endUpload(u *upload) {
	a.Machine.uploadBytes -= u.size
	delete(a.uploads, u.id)
	a.remove(BucketUpload, u.key())
	a.changeUpload(u, true)
}

// dropUploadsOf a session that ends.
func (a *application) dropUploadsOf(session uint64) {
	for _, u := range a.sortedUploads() {
		if u.session == session {
			a.dropUpload(u)
		}
	}
}

func (a *application) removeParts(place uint64, parts uint32) {
	for n := range parts {
		a.remove(BucketPayload, PartKey(place, n))
	}
}

func (a *application) changeUpload(u *upload, ended bool) {
	e := u.export()
	e.Ended = ended
	a.changes = append(a.changes, Change{Topic: TopicUpload, Upload: &e})
}

// removePayload of a call, with the body that lies beside it.
func (a *application) removePayload(c *call) {
	a.remove(BucketPayload, numberKey(c.seq))
	if c.extras != nil && c.extras.body != nil {
		a.removeParts(c.extras.body.Place, c.extras.body.Parts)
		c.extras.body = nil
	}
}

// weight of dropping a call, in store operations, about.
func (c *call) weight() int64 {
	if c.extras != nil && c.extras.body != nil {
		return 1 + int64(c.extras.body.Parts)
	}
	return 1
}

// key is a copy: operations outlive the upload.
func (u *upload) key() []byte { return slices.Clone(u.id[:]) }

func (u *upload) export() Upload {
	return Upload{ID: u.id, Session: u.session, Parts: u.parts, Bytes: u.size, Index: u.index}
}

func (m *Machine) live(session uint64) bool {
	s, ok := m.sessions[session]
	return ok && !s.Vanished
}

// sortedUploads in the order in which they began.
func (m *Machine) sortedUploads() []*upload {
	all := make([]*upload, 0, len(m.uploads))
	for _, u := range m.uploads {
		all = append(all, u)
	}
	slices.SortFunc(all, func(a, b *upload) int { return cmp.Compare(a.place, b.place) })
	return all
}

// Uploads under way, in the order in which they began.
func (m *Machine) Uploads() []Upload {
	all := make([]Upload, 0, len(m.uploads))
	for _, u := range m.sortedUploads() {
		all = append(all, u.export())
	}
	return all
}

// UploadSizes says how many uploads are under way, and how many bytes they have.
func (m *Machine) UploadSizes() (uploads int, bytes uint64) { return len(m.uploads), m.uploadBytes }

func encodeUpload(u *upload) []byte {
	b := make([]byte, 0, 40)
	for _, v := range []uint64{u.place, u.session, uint64(u.parts), uint64(u.part), u.size, u.index} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func decodeUpload(key, value []byte) (*upload, error) {
	u := &upload{}
	if len(key) != len(u.id) {
		return nil, errRecord
	}
	copy(u.id[:], key)
	r := record{b: value}
	u.place, u.session, u.parts, u.part, u.size, u.index = r.uint(), r.uint(), uint32(r.uint()), uint32(r.uint()), r.uint(), r.uint()
	return u, r.end()
}

func appendBody(b []byte, body *Body) []byte {
	for _, v := range []uint64{body.Place, uint64(body.Parts), uint64(body.Part), body.Size, uint64(body.Sum)} {
		b = binary.AppendUvarint(b, v)
	}
	return b
}

func (r *record) body() *Body {
	return &Body{Place: r.uint(), Parts: uint32(r.uint()), Part: uint32(r.uint()), Size: r.uint(), Sum: uint32(r.uint())}
}
